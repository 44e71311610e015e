"""Edits of presets: validate, plan, build, then commit and publish, one at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from merging.plan import Plan
from server.errors import ServiceError
from server.presets.builder import Builder
from server.presets.changes import Change, existing, is_current
from server.presets.document import PresetDocument
from server.presets.document_members import DocumentMembers
from server.presets.editing import Observation, check_conditions, cleaned
from server.presets.names import parse_model_string
from server.presets.observer import CatalogObserver
from server.presets.planner import Planner
from server.presets.published import Published
from server.presets.record import Edit, EditResult, PresetRecord, StoredRevision, now
from server.presets.revising import building, new_revision, ready
from server.presets.snapshot import Preset, Serving, Snapshot
from server.presets.store import PresetStore
from server.presets.turns import Turns
from server.presets.variants import Variants
from server.presets.workshop import BuildError

NUM_ATTEMPTS = 4
"""An edit that others keep overtaking makes them wait after so many attempts."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """The plan of a document's recipe, those of its members beside it, all that it would serve, and
    the digests of the pinned variants whose room that takes.
    """

    plan: Plan
    members: Mapping[str, Plan]
    served: Sequence[Plan]
    replacing: Collection[str]


class PresetEditor:
    """The only writer of presets beside their sources. Every edit is one transaction.

    What an edit makes is planned and built from a snapshot without any lock. Then, under the lock,
    it is committed and published if the preset and its sources are still those of the snapshot,
    else all begins again: edits of other presets never wait for a build. Edits of one preset that
    are answered when they serve take turns.
    """

    def __init__(
        self,
        store: PresetStore,
        planner: Planner,
        published: Published,
        variants: Variants,
        observer: CatalogObserver,
        members: DocumentMembers,
        builder: Builder,
        *,
        revisions_kept: int,
    ) -> None:
        self._store = store
        self._planner = planner
        self._published = published
        self._observer = observer
        self._builder = builder
        self._members = members
        self._variants = variants
        self._turns = Turns()
        self._revisions_kept = revisions_kept

    def edit(self, operation: str, name: str, edit: Edit, change: Change) -> EditResult:
        """Give a preset the document that `change` makes, as a new revision if that differs."""
        edit = cleaned(edit)
        with self._observed(operation, name) as observation, ExitStack() as stack:
            if edit.wait:
                stack.enter_context(self._turns.of(name))
            for _ in range(NUM_ATTEMPTS):
                result = self._attempt(observation, name, edit, change)
                if result is not None:
                    return result
            stack.enter_context(self._published.lock)
            result = self._attempt(observation, name, edit, change)
            assert result is not None, "nobody else edits while this thread has the lock"
            return result

    def _attempt(
        self, observation: Observation, name: str, edit: Edit, change: Change
    ) -> EditResult | None:
        """Make an edit; None if another one was published meanwhile."""
        phases, snapshot = observation.phases, self._published.snapshot
        with phases.timed("validate"):
            current = snapshot.presets.get(name)
            document = self._document(name, current, edit, change)
        if current is not None and is_current(document, current):
            observation.outcome = "unchanged"
            record = self._finish(current) if edit.wait else current.record
            return EditResult(record, created=False, changed=False)
        with phases.timed("plan"):
            planned = self._planned(document, snapshot, current)
        with ExitStack() as stack:
            if edit.wait and any(each.variant is not None for each in planned.served):
                with phases.timed("build"):
                    stack.enter_context(self._holding(planned, snapshot, current))
            stack.enter_context(self._published.lock)
            if self._has_moved(snapshot, name, planned):
                return None
            number = self._last_number(name, current) + 1
            stored = new_revision(document, planned.plan, edit, number=number, at=now())
            serving = Serving(stored, planned.plan, planned.members)
            self._published.check_pinned([ready(serving)])
            with phases.timed("commit"):
                self._commit(stored, current)
            with phases.timed("publish"):
                self._publish(serving, current, edit)
            return EditResult(stored.record, created=current is None, changed=True)

    def _has_moved(self, snapshot: Snapshot, name: str, planned: _Planned) -> bool:
        """Whether the preset, one of its sources or a preset that its members are revisions of is
        not what it was. Called with the lock.
        """
        present = self._published.snapshot
        if name not in present.presets:
            self._published.check_free(name, kind="preset")
        presets = {name, *(parse_model_string(model).name for model in planned.members)}
        return any(
            present.presets.get(preset) is not snapshot.presets.get(preset) for preset in presets
        ) or any(
            present.sources.get(source) is not snapshot.sources.get(source)
            for source in planned.plan.sources
        )

    def _finish(self, current: Preset) -> PresetRecord:
        """Publish a head that is still building: who waits is answered when it serves."""
        if current.record.state != "building":
            return current.record
        snapshot, document = self._published.snapshot, current.record.document
        planned = self._planned(document, snapshot, current)
        serving = Serving(current.head, planned.plan, planned.members)
        with self._holding(planned, snapshot, current):
            self._builder.finish(serving)
        after = self._published.snapshot.presets.get(current.record.name)
        if after and after.record.label == current.record.label and after.record.state == "failed":
            raise BuildError(after.record.reasons)
        return ready(serving).record

    def delete(self, name: str, edit: Edit) -> None:
        """Delete a preset and its revisions; its numbers are not used again."""
        with self._observed("delete", name) as observation, self._published.lock:
            presets = self._published.snapshot.presets
            current = existing(presets.get(name), name, presets)
            check_conditions(edit, name, current.record.revision)
            with observation.phases.timed("commit"), self._store.writing() as writer:
                writer.delete_preset(name, head=current.record.revision, at=now())
            with observation.phases.timed("publish"):
                self._published.publish(without=name)

    def dry_run(self, document: PresetDocument, edit: Edit) -> tuple[PresetRecord, Plan]:
        """What a document would become, by the rules of an edit; nothing is stored."""
        name, snapshot = document.name, self._published.snapshot
        current = snapshot.presets.get(name)
        check_conditions(edit, name, None if current is None else current.record.revision)
        if current is None:
            self._published.check_free(name, kind="preset")
        plan = self._planned(document, snapshot, current).plan
        if current is not None and is_current(document, current):
            return current.record, plan
        number = self._last_number(name, current) + 1
        return new_revision(document, plan, Edit(), number=number, at=now()).record, plan

    def _document(
        self, name: str, current: Preset | None, edit: Edit, change: Change
    ) -> PresetDocument:
        if current is not None:
            check_conditions(edit, name, current.record.revision)
            return change(current)
        document = change(None)  # first: what does not exist is not found, whatever the condition
        check_conditions(edit, name, None)
        self._published.check_free(name, kind="preset")
        return document

    def _planned(
        self, document: PresetDocument, snapshot: Snapshot, current: Preset | None
    ) -> _Planned:
        """A document's plans; BuildError if what it would serve can never be kept."""
        members = self._members.plans(document, snapshot, current)
        plan = self._planner.plan_document(document, snapshot.sources)
        served = snapshot.weights_of(document, plan, members)
        replacing = self._published.pinned_by([document.name])
        self._variants.check(served, replacing)
        return _Planned(plan, members, served, replacing)

    def _holding(
        self, planned: _Planned, snapshot: Snapshot, current: Preset | None
    ) -> AbstractContextManager[None]:
        """What was planned, built and kept beside what serves now."""
        old = snapshot.weights_now(current)
        return self._variants.holding(planned.served, old, planned.replacing)

    def _commit(self, stored: StoredRevision, current: Preset | None) -> None:
        with self._store.writing() as writer:
            if current is None:
                writer.create_preset(stored, after=stored.record.revision - 1)
            else:
                writer.add_revision(stored, kept=self._revisions_kept)

    def _last_number(self, name: str, current: Preset | None) -> int:
        """The newest revision number that a name ever had; 0 if it was never used."""
        if current is not None:
            return current.record.revision
        counter = self._store.counter(name)
        return 0 if counter is None else counter.head

    def _publish(self, serving: Serving, current: Preset | None, edit: Edit) -> None:
        if edit.wait:
            self._published.publish([ready(serving)])
        else:
            before = current.serving if current else None
            self._published.publish([building(serving.stored, before)])
            self._builder.submit(serving)

    @contextmanager
    def _observed(self, operation: str, name: str) -> Iterator[Observation]:
        observation = Observation()
        known = name in self._published.snapshot.presets
        try:
            yield observation
        except ServiceError as error:
            observation.outcome = "refused" if error.status < 500 else "failed"
            raise
        except BaseException:
            observation.outcome = "failed"
            raise
        finally:
            # Names of presets that never were must not become values of a metric's label.
            known = known or name in self._published.snapshot.presets
            self._observer.preset_edited(
                name if known else "", operation, observation.outcome, observation.phases.seconds
            )
