"""The cards of what can be called as `model`."""

from collections.abc import Iterator
from pathlib import Path

from merging.base import Base
from merging.recipe import BASE
from server.engine.location import is_hub_id
from server.errors import ForbiddenError, InvalidRequestError
from server.presets.kept_revisions import KeptRevisions
from server.presets.member_finder import LIST_MODELS
from server.presets.names import is_base, model_not_found, parse_model_string
from server.presets.origins import Origins
from server.presets.permissions import Permissions
from server.presets.policy import Policy
from server.presets.record import ModelCard, PresetRecord, now
from server.presets.snapshot import Preset, Snapshot
from server.presets.sources import Source
from server.presets.twin import make_twin


class ModelList:
    """Cards in the shape of OpenAI's, with `root` and `parent` as vLLM has them for adapters.

    Where things lie on this machine is for its operator: a `public` card has names and hub ids.
    """

    def __init__(self, base: Base, kept: KeptRevisions, policy: Policy, origins: Origins) -> None:
        self._base, self._kept, self._policy = base, kept, policy
        self._permissions = Permissions(policy)
        self._origins, self._created = origins, int(now().timestamp())

    def cards(self, snapshot: Snapshot, *, public: bool = False) -> list[ModelCard]:
        """Everything that can be called: the base, the presets, the sources if they are served."""
        presets = [card for _, p in sorted(snapshot.presets.items()) for card in self._presets(p)]
        sources = [self._source(source, public) for _, source in sorted(snapshot.sources.items())]
        served = sources if self._policy.serve_sources else []
        return [self._base_card(public), *presets, *served]

    def card(self, snapshot: Snapshot, model: str, *, public: bool = False) -> ModelCard:
        """The card of a model string; NotFoundError if it names nothing that can be called."""
        if is_base(model, self._base):
            return self._base_card(public)
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            record = preset.record
            if parsed.revision is not None:
                record = self._kept.find(preset, parsed.revision).record
            return self._preset(record, model)
        source = snapshot.sources.get(parsed.name)
        is_one = parsed.revision is None and parsed.mode != "ensemble"
        if source is None or not self._policy.serve_sources or not is_one:
            known = [*snapshot.presets, *snapshot.sources]
            raise model_not_found(model, LIST_MODELS, known)
        return self._source(source, public, model)

    def _base_card(self, public: bool) -> ModelCard:
        location = self._origins.location_of(BASE, {})
        root = self._base.name if public or not location else _absolute(location)
        root = location if is_hub_id(location) else root
        return ModelCard(self._base.name, root, None, None, self._created)

    def _presets(self, preset: Preset) -> Iterator[ModelCard]:
        """A preset, and its ensemble where it is listed by itself."""
        yield self._preset(preset.record)
        if self._policy.list_ensembles and self._has_ensemble(preset):
            yield self._preset(preset.record, f"{preset.record.name}:ensemble")

    def _has_ensemble(self, preset: Preset) -> bool:
        """Whether a caller may ask a preset that answers as a merge for its ensemble."""
        if preset.serving is None or preset.serving.stored.record.document.mode == "ensemble":
            return False
        document = preset.serving.stored.record.document
        try:
            self._permissions.check_level(document, ("mode", "weights"), "another mode")
            make_twin(document.ensemble, preset.serving.plan, document.base_model)
        except (ForbiddenError, InvalidRequestError):
            return False
        return True

    def _preset(self, record: PresetRecord, model: str | None = None) -> ModelCard:
        created = int(record.created_at.timestamp())
        root = self._base.name
        return ModelCard(model or record.name, root, self._base.name, record.revision, created)

    def _source(self, source: Source, public: bool, model: str | None = None) -> ModelCard:
        created = int(source.created_at.timestamp())
        location = self._origins.location_of(source.name, {source.name: source})
        root = source.name if public else str(source.path)
        root = location if is_hub_id(location) else root
        return ModelCard(model or source.name, root, self._base.name, None, created)


def _absolute(location: str) -> str:
    path = Path(location).expanduser()
    return str(path.resolve()) if path.is_dir() else location
