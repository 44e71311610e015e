"""What can be called, as one immutable value: readers take it whole and need no lock."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from merging.plan import Plan
from server.errors import NotFoundError
from server.presets.document import PresetDocument
from server.presets.planner import used_sources
from server.presets.record import PresetRecord, SourceCard, StoredRevision
from server.presets.source_delta import delta_of, kind_of, recorded_base
from server.presets.sources import Source, present_reasons
from server.suggestion import did_you_mean


@dataclass(frozen=True, slots=True)
class Serving:
    """A revision with the plan that requests get.

    `members` are the plans of its ensemble's members that are revisions of other presets, by model
    string: it keeps them, whatever becomes of these presets.
    """

    stored: StoredRevision
    plan: Plan
    members: Mapping[str, Plan] = field(default_factory=dict)

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

    def weights_of(
        self, document: PresetDocument, plan: Plan, members: Mapping[str, Plan]
    ) -> tuple[Plan, ...]:
        """The plans whose weights a preset serves: its own, or where it runs as an ensemble those
        of its sources alone, and of members beside them.
        """
        if document.mode == "merge":
            return (plan,)
        sources = [self.sources[name] for name in sorted(plan.sources) if name in self.sources]
        alone = (source.plan for source in sources if source.plan is not None)
        return (*alone, *members.values())

    def weights_now(self, preset: Preset | None) -> tuple[Plan, ...]:
        """The same of what requests for a preset get now, if anything."""
        if preset is None or preset.serving is None:
            return ()
        serving = preset.serving
        return self.weights_of(serving.stored.record.document, serving.plan, serving.members)

    def presets_using(self, *sources: str) -> list[Preset]:
        """The presets whose newest revision uses one of these sources, by name."""
        presets = (self.presets[name] for name in sorted(self.presets))
        used = frozenset(sources)
        return [preset for preset in presets if used & used_sources(preset.record.document)]

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
            delta=None if content is None else delta_of(content),
            parent=source.parent,
            presets=tuple(preset.record.name for preset in self.presets_using(name)),
            created_at=source.created_at,
            updated_at=source.updated_at,
        )


def existing_source(snapshot: Snapshot, name: str) -> Source:
    """The source of that name, or NotFoundError."""
    source = snapshot.sources.get(name)
    if source is None:
        raise NotFoundError(
            f"there is no source {name!r}. {did_you_mean(name, snapshot.sources)}GET /v1/sources "
            "lists those that exist",
            param="name",
        )
    return source
