"""What can be called, as one immutable value: readers take it whole and need no lock."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from merging.plan import Plan
from server.errors import NotFoundError
from server.presets.document import PresetDocument
from server.presets.planner import used_sources
from server.presets.record import PresetRecord, SourceCard, StoredRevision
from server.presets.sources import Source, kind_of, present_reasons, recorded_base


@dataclass(frozen=True, slots=True)
class Serving:
    """A revision with the plan that requests get."""

    stored: StoredRevision
    plan: Plan

    @property
    def revision(self) -> int:
        """The revision's number."""
        return self.stored.record.revision

    @property
    def merge(self) -> Plan | None:
        """The plan, if requests get the merge."""
        return self.plan if self.stored.record.document.mode == "merge" else None


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset: `head` is its newest revision, `serving` what requests get.

    They are the same revision unless the head is building or has failed: then an older one serves,
    or none.
    """

    head: StoredRevision
    serving: Serving | None

    @property
    def record(self) -> PresetRecord:
        """The newest revision's record."""
        return self.head.record


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every preset and source by name."""

    presets: Mapping[str, Preset] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)

    def weights_of(self, document: PresetDocument, plan: Plan) -> tuple[Plan, ...]:
        """The plans whose weights a preset serves: its own, or where it runs as an ensemble those
        of its sources alone.
        """
        if document.mode == "merge":
            return (plan,)
        sources = [self.sources[name] for name in sorted(plan.sources) if name in self.sources]
        return tuple(source.plan for source in sources if source.plan is not None)

    def weights_now(self, preset: Preset | None) -> tuple[Plan, ...]:
        """The same of what requests for a preset get now, if anything."""
        if preset is None or preset.serving is None:
            return ()
        return self.weights_of(preset.serving.stored.record.document, preset.serving.plan)

    def runs_revisions(self, model: str) -> bool:
        """Whether a model string names a preset whose ensemble has revisions of others as members:
        older ones are in the database.
        """
        preset = self.presets.get(model.partition(":")[0])
        if preset is None or preset.serving is None:
            return False
        members = preset.serving.stored.record.document.ensemble.members.values()
        return any("@" in (member.model or "") for member in members)

    def presets_using(self, source: str) -> list[Preset]:
        """The presets whose newest revision uses a source, by name."""
        names = sorted(self.presets)
        presets = (self.presets[name] for name in names)
        return [preset for preset in presets if source in used_sources(preset.record.document)]

    def source_card(self, name: str) -> SourceCard:
        """The card of a source that is registered."""
        source = self.sources[name]
        content, reasons = source.content, present_reasons(source)
        base_name, base_digest = (None, None) if content is None else recorded_base(content)
        return SourceCard(
            name=name,
            path=source.path,
            kind=None if content is None else kind_of(content),
            digest=source.digest,
            state="failed" if content is None or reasons else "ready",
            reasons=reasons,
            warnings=source.warnings,
            num_bytes=0 if content is None else content.num_bytes,
            base_name=base_name,
            base_digest=base_digest,
            presets=tuple(preset.record.name for preset in self.presets_using(name)),
            created_at=source.created_at,
            updated_at=source.updated_at,
        )


def existing_source(snapshot: Snapshot, name: str) -> Source:
    """The source of that name, or NotFoundError."""
    source = snapshot.sources.get(name)
    if source is None:
        raise NotFoundError(
            f"there is no source {name!r}; GET /v1/sources lists those that exist", param="name"
        )
    return source
