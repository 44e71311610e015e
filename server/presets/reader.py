"""Reading a catalog: presets with where their weights stand, what they resolve to, and sources."""

from dataclasses import replace

from pydantic import JsonValue

from merging.plan import Plan
from server.errors import UnprocessableError
from server.presets.changes import existing
from server.presets.explain import explain, explain_failed
from server.presets.interference import Interference
from server.presets.kept_revisions import KeptRevisions
from server.presets.planner import used_sources
from server.presets.preset_warnings import PresetWarnings, preset_warnings
from server.presets.published import Published
from server.presets.record import PresetRecord, SourceCard
from server.presets.snapshot import Preset, Snapshot, existing_source
from server.presets.variants import Variants


class Reader:
    """Reads what is published, without a lock."""

    def __init__(
        self,
        published: Published,
        kept: KeptRevisions,
        variants: Variants,
        interference: Interference,
    ) -> None:
        self._published = published
        self._kept = kept
        self._variants = variants
        self._interference = interference

    def presets(self) -> list[PresetRecord]:
        """The newest revision of every preset, by name."""
        presets = self._published.snapshot.presets
        return [self._shown(presets[name].record) for name in sorted(presets)]

    def preset(self, name: str, revision: int | None) -> PresetRecord:
        """The newest revision of a preset, or a kept one."""
        preset = self._existing(name)
        head = preset.head if revision is None else self._kept.find(preset, revision)
        return self._shown(head.record)

    def revisions(self, name: str) -> list[PresetRecord]:
        """The kept revisions of a preset, newest first."""
        return [self._shown(record) for record in self._kept.all(self._existing(name))]

    def explain(
        self, name: str, revision: int | None, *, interference: bool | None
    ) -> dict[str, JsonValue]:
        """What a revision resolves to, tensor by tensor, or why it cannot be built.

        With `interference` also how its sources agree, which takes a pass over all tensors; None
        does without where that cannot be told.
        """
        preset = self._existing(name)
        stored = preset.head if revision is None else self._kept.find(preset, revision)
        if stored.record.state == "failed":
            return explain_failed(stored.record)
        plan = self._kept.plan(stored)
        explained = self.explain_plan(stored.record, plan)
        if interference is not False:
            explained["interference"] = self._report(plan, must_be=interference is True)
        return explained

    def _report(self, plan: Plan, *, must_be: bool) -> dict[str, JsonValue] | None:
        try:
            return self._interference.report(plan)
        except UnprocessableError:
            if must_be:
                raise
            return None

    def explain_plan(self, record: PresetRecord, plan: Plan) -> dict[str, JsonValue]:
        """What a plan resolves to, stored or not."""
        built = self._variants.built(plan.digest)
        kv_bytes = self._variants.kv_bytes(plan)
        shown = replace(self._shown(record), warnings=self.warnings(record, plan))
        return explain(shown, plan, built, kv_bytes)

    def warnings(self, record: PresetRecord, plan: Plan) -> PresetWarnings:
        """What is to be warned of in a preset with this plan, stored or not."""
        sources, doubts = self._published.snapshot.sources, self._published.suspects.doubts
        return preset_warnings(record.document, plan, sources, doubts, record.label)

    def validated(
        self, record: PresetRecord, plan: Plan
    ) -> tuple[PresetRecord, dict[str, JsonValue]]:
        """What a dry run tells: the record that there would be, and its explanation."""
        told = replace(record, warnings=self.warnings(record, plan))
        return told, self.explain_plan(record, plan)

    def told(self, record: PresetRecord) -> PresetRecord:
        """The record with its warnings, if it is of the revision that serves."""
        snapshot = self._published.snapshot
        preset = snapshot.presets.get(record.name)
        if preset is None or preset.serving is None or preset.serving.revision != record.revision:
            return record
        return replace(record, warnings=self._published.suspects.warnings(preset, snapshot))

    def sources(self) -> list[SourceCard]:
        """Every source, by name."""
        snapshot = self._published.snapshot
        return [self._card(snapshot, name) for name in sorted(snapshot.sources)]

    def source(self, name: str) -> SourceCard:
        """One source."""
        snapshot = self._published.snapshot
        return self._card(snapshot, existing_source(snapshot, name).name)

    def _card(self, snapshot: Snapshot, name: str) -> SourceCard:
        """A source's card, with the doubts about it before its other warnings."""
        card, content = snapshot.source_card(name), snapshot.sources[name].content
        if content is None:
            return card
        doubts = self._published.suspects.doubts.of_source(content)
        warnings = tuple(dict.fromkeys((*doubts, *card.warnings)))
        return replace(card, is_suspect=bool(doubts), warnings=warnings)

    def _shown(self, record: PresetRecord) -> PresetRecord:
        """The record with its warnings, and with where its variants stand: they may be cold."""
        record = self.told(record)
        if record.state != "ready":
            return record
        for digest in self._variants_of(record):
            state, reasons = self._variants.state(digest)
            if state != "ready":
                return replace(record, state=state, reasons=reasons)
        return record

    def _variants_of(self, record: PresetRecord) -> list[str]:
        """The digests of the built weights that a record stands for: its own, or its members'."""
        if record.path == "variant":
            return [record.digest]
        if record.path != "ensemble":
            return []
        snapshot = self._published.snapshot
        preset = snapshot.presets.get(record.name)
        if preset and preset.serving and preset.serving.revision == record.revision:
            plans = snapshot.weights_now(preset)
        else:
            sources = [snapshot.sources.get(name) for name in sorted(used_sources(record.document))]
            plans = tuple(s.plan for s in sources if s is not None and s.plan is not None)
        return [plan.digest for plan in plans if plan.variant is not None]

    def _existing(self, name: str) -> Preset:
        presets = self._published.snapshot.presets
        return existing(presets.get(name), name, presets)
