"""What members of ensembles run that are no sources of the recipe."""

from collections.abc import Collection, Mapping

from merging.base import Base
from merging.plan import Plan, base_plan
from server.errors import InvalidRequestError, NotFoundError
from server.presets.ensembles import FindModel
from server.presets.kept_revisions import KeptRevisions
from server.presets.names import is_base, model_not_found, parse_model_string
from server.presets.permissions import Permissions, plan_of
from server.presets.snapshot import Serving, Snapshot

LIST_MODELS = "GET /v1/models lists those that do."


class MemberFinder:
    """Looks up the base, sources, and the merges of presets."""

    def __init__(self, base: Base, kept: KeptRevisions, permissions: Permissions) -> None:
        self._base = base
        self._base_plan = base_plan(base)
        self._kept = kept
        self._permissions = permissions

    def finder(
        self, snapshot: Snapshot, asked: Collection[str], known: Mapping[str, Plan]
    ) -> FindModel:
        """Finds members in a snapshot; those of the document are `known`, by model. Sources that a
        request names, in one of the members `asked`, must be served. InvalidRequestError for what
        is not there.
        """

        def find(name: str, model: str) -> Plan:
            if name not in asked and model in known:
                return known[model]
            try:
                return self.find(snapshot, model, by_request=name in asked)
            except NotFoundError as error:
                raise InvalidRequestError(
                    f"members.{name}.model: {error.message}", param="members"
                ) from error

        return find

    def find(self, snapshot: Snapshot, model: str, *, by_request: bool) -> Plan:
        """The plan of one model. NotFoundError if there is none, InvalidRequestError for an
        ensemble; the error of calling it where that is not possible.
        """
        if is_base(model, self._base):
            return self._base_plan
        parsed = parse_model_string(model)
        if preset := snapshot.presets.get(parsed.name):
            serving = self._kept.serving(preset, parsed.revision)
            if (parsed.mode or serving.stored.record.document.mode) == "ensemble":
                raise InvalidRequestError(
                    f"{model!r} is an ensemble itself, and ensembles have no ensembles as "
                    f"members: its merge is {parsed.name}:merge",
                    param="members",
                )
            if by_request:
                self._check_merge(serving)
            return serving.plan
        source = snapshot.sources.get(parsed.name)
        if source is None or model != source.name:
            raise model_not_found(model, LIST_MODELS, [*snapshot.presets, *snapshot.sources])
        return self._permissions.source_plan(source) if by_request else plan_of(source)

    def _check_merge(self, serving: Serving) -> None:
        """ForbiddenError unless a request may name the merge of this revision: that of a preset
        which runs as an ensemble is its other mode, and its weights are nobody else's.
        """
        document = serving.stored.record.document
        if document.mode == "ensemble":
            self._permissions.check_level(document, ("mode", "weights"), "another mode")
            self._permissions.check_temporary(serving.plan, "members")
