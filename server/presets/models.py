"""The cards of what can be called as `model`."""

from merging.base import Base
from server.presets.kept_revisions import KeptRevisions
from server.presets.names import is_base, model_not_found, parse_model_string
from server.presets.policy import Policy
from server.presets.record import ModelCard, PresetRecord
from server.presets.snapshot import Snapshot
from server.presets.sources import Source


class ModelList:
    """Cards in the shape of OpenAI's, with `root` and `parent` as vLLM has them for adapters."""

    def __init__(self, base: Base, kept: KeptRevisions, policy: Policy, *, created: int) -> None:
        self._base, self._kept, self._policy = base, kept, policy
        self._base_card = ModelCard(base.name, base.name, None, None, created)

    def cards(self, snapshot: Snapshot) -> list[ModelCard]:
        """Everything that can be called: the base, the presets, the sources if they are served."""
        presets = [self._preset(preset.record) for _, preset in sorted(snapshot.presets.items())]
        sources = [self._source(source) for _, source in sorted(snapshot.sources.items())]
        return [self._base_card, *presets, *(sources if self._policy.serve_sources else ())]

    def card(self, snapshot: Snapshot, model: str) -> ModelCard:
        """The card of a model string; NotFoundError if it names nothing that can be called."""
        if is_base(model, self._base):
            return self._base_card
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            record = preset.record
            if parsed.revision is not None:
                record = self._kept.find(preset, parsed.revision).record
            return self._preset(record, model)
        source = snapshot.sources.get(parsed.name)
        is_one = parsed.revision is None and parsed.mode != "ensemble"
        if source is None or not self._policy.serve_sources or not is_one:
            raise model_not_found(model, "GET /v1/models lists those that do.")
        return self._source(source, model)

    def _preset(self, record: PresetRecord, model: str | None = None) -> ModelCard:
        created = int(record.created_at.timestamp())
        root = self._base.name
        return ModelCard(model or record.name, root, self._base.name, record.revision, created)

    def _source(self, source: Source, model: str | None = None) -> ModelCard:
        created = int(source.created_at.timestamp())
        return ModelCard(model or source.name, str(source.path), self._base.name, None, created)
