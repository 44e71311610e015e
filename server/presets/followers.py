"""Presets that use a source: what becomes of them when it has new content."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from server.errors import UnprocessableError
from server.presets.document_members import DocumentMembers
from server.presets.editing import Phases
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit
from server.presets.revising import failed, refreshed
from server.presets.snapshot import Preset, Snapshot
from server.presets.sources import Source
from server.presets.variants import Variants

Follower = tuple[Preset, Preset]
"""A preset before and after."""


class Followers:
    """Plans and builds them, without any lock."""

    def __init__(
        self,
        planner: Planner,
        variants: Variants,
        published: Published,
        members: DocumentMembers,
    ) -> None:
        self._planner = planner
        self._variants = variants
        self._published = published
        self._members = members

    def plan(self, snapshot: Snapshot, changed: Sequence[Source], edit: Edit) -> list[Follower]:
        """Every preset that uses what changed, a source and adapters on it, before and after;
        refused if that breaks one.
        """
        source = changed[0]
        edit = _revision_edit(source, edit)
        sources = {**snapshot.sources, **{own.name: own for own in changed}}
        followers: list[Follower] = []
        reasons: list[str] = []
        for before in snapshot.presets_using(*(own.name for own in changed)):
            after = refreshed(before.head, sources, self._planner, edit, source.updated_at)
            after = self._members.joined(after, snapshot, before)
            if after.record.state == "failed":
                after = failed(after.head, after.record.reasons, before.serving)
            # One that had failed before may have other reasons, and must not stand in the way.
            if after.record.state == "failed" and before.record.state != "failed":
                reasons.append(f"preset {before.record.name!r} {after.record.reasons[0]}")
            followers.append((before, after))
        refuse(source, reasons)
        return followers

    def build(
        self,
        source: Source,
        followers: Sequence[Follower],
        phases: Phases,
        stack: ExitStack,
    ) -> list[Follower]:
        """Build what follows; refused if one cannot be, unless it had failed before.

        Pinned variants and the first other one are kept until all are published. The rest must not
        need room for all of them at once, nor take that of what serves: they may be cold then.
        """
        result, reasons, is_kept = [], [], False
        replacing = self._published.pinned_by([before.record.name for before, _ in followers])
        for before, after in followers:
            plan = None if after.serving is None else after.serving.merge or source.plan
            if plan is not None and plan.variant is not None:
                try:
                    with phases.timed("build"):
                        is_pinned = after.record.document.pinned
                        if is_pinned or not is_kept:
                            old = self._published.snapshot.weights_now(before)
                            stack.enter_context(self._variants.holding([plan], old, replacing))
                        else:
                            self._variants.build(plan, replacing)
                        is_kept = is_kept or not is_pinned
                except UnprocessableError as error:
                    if before.record.state != "failed":
                        reasons.append(f"preset {before.record.name!r} {error.message}")
                    after = before
            result.append((before, after))
        refuse(source, reasons)
        return result


def are_all(presets: Sequence[Preset], followers: Sequence[Follower]) -> bool:
    """Whether these are the same objects as those that follow, before they do."""
    return list(map(id, presets)) == [id(before) for before, _ in followers]


def refuse(source: Source, reasons: Sequence[str]) -> None:
    """UnprocessableError if there are reasons against the new content."""
    if reasons:
        raise UnprocessableError(
            f"the new content of source {source.name!r} breaks presets that use it, nothing "
            f"changed: {'; '.join(reasons)}",
            param="path",
        )


def _revision_edit(source: Source, edit: Edit) -> Edit:
    """The edit of the presets that follow: at once, and saying why."""
    message = f"source {source.name} has new content"
    return replace(
        edit, wait=True, message=f"{message}: {edit.message}" if edit.message else message
    )
