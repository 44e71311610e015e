"""What an ensemble in a document may name as its members, so that a revision stays what it is."""

from collections.abc import Mapping
from dataclasses import replace

from merging.plan import Plan
from merging.recipe import BASE
from server.errors import InvalidRequestError, NotFoundError, ServiceError
from server.presets.document import PresetDocument
from server.presets.member_finder import MemberFinder
from server.presets.names import parse_model_string
from server.presets.planner import used_sources
from server.presets.revising import failed
from server.presets.snapshot import Preset, Snapshot


class DocumentMembers:
    """Plans the members beside the base and the recipe's sources: revisions of presets.

    A revision that serves keeps their plans: they are looked up when it is made, or loaded.
    """

    def __init__(self, finder: MemberFinder) -> None:
        self._finder = finder

    def plans(
        self, document: PresetDocument, snapshot: Snapshot, current: Preset | None
    ) -> Mapping[str, Plan]:
        """The plans of a document's members by model string; `current` serves, with its members.

        InvalidRequestError for a member that is no revision, since what else a name stands for may
        change, and the revision would not; the error of calling it for a revision that cannot be
        called as a merge. A merge does without those that it has already and that are gone.
        """
        serving = None if current is None else current.serving
        known = {} if serving is None else serving.members
        needless: frozenset[str] = frozenset()
        if current is not None and document.mode == "merge":
            needless = frozenset(_beside(current.record.document).values())
        plans: dict[str, Plan] = {}
        for name, model in _beside(document).items():
            try:
                plans[model] = known.get(model) or self._find(name, model, snapshot)
            except ServiceError:
                if model not in needless:
                    raise
        return plans

    def joined(self, preset: Preset, snapshot: Snapshot, current: Preset | None = None) -> Preset:
        """A preset with the members of what serves. An ensemble that lacks one has failed."""
        serving = preset.serving
        if serving is None:
            return preset
        document = serving.stored.record.document
        try:
            members = self.plans(document, snapshot, current or preset)
        except ServiceError as error:
            if document.mode == "merge":
                return preset
            if serving.stored is not preset.head:
                return replace(preset, serving=None)
            return failed((current or preset).head, [error.message])
        return replace(preset, serving=replace(serving, members=members))

    def _find(self, name: str, model: str, snapshot: Snapshot) -> Plan:
        field = f"ensemble.members.{name}.model"
        try:
            _check_revision(model, snapshot)
            return self._finder.find(snapshot, model, by_request=False)
        except NotFoundError as error:
            raise InvalidRequestError(f"{field}: {error.message}", param=field) from error
        except ServiceError as error:
            error.message, error.param = f"{field}: {error.message}", field
            raise


def _beside(document: PresetDocument) -> dict[str, str]:
    """What the members run that are neither the base nor a source of the recipe, by name."""
    models = {name: own.model or name for name, own in document.ensemble.members.items()}
    known = used_sources(document) | {BASE}
    return {name: model for name, model in models.items() if model not in known}


def _check_revision(model: str, snapshot: Snapshot) -> None:
    parsed = parse_model_string(model)
    if parsed.revision is None:
        raise InvalidRequestError(
            f"{model!r} is neither base, nor a source of the preset, nor PRESET@N, a revision of "
            "another preset: a source goes into sources, with a weight of 0 if the merge is to be "
            "without it"
        )
    if parsed.name not in snapshot.presets:
        raise InvalidRequestError(f"there is no {model!r}")
