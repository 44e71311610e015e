"""What an ensemble in a document may name as its members, so that a revision stays what it is."""

from merging.plan import Plan
from merging.recipe import BASE
from server.errors import InvalidRequestError, NotFoundError, ServiceError
from server.presets.document import PresetDocument
from server.presets.member_finder import MemberFinder
from server.presets.names import parse_model_string
from server.presets.planner import used_sources
from server.presets.snapshot import Snapshot


def member_plans(
    document: PresetDocument, snapshot: Snapshot, finder: MemberFinder
) -> tuple[Plan, ...]:
    """The plans of the members beside the base and the recipe's sources: revisions of presets.

    InvalidRequestError for a member that is none of these, since what else a name stands for may
    change, and the revision would not; the error of calling it for a revision that cannot be called
    as a merge.
    """
    plans = []
    for name, member in document.ensemble.members.items():
        model = member.model or name
        if model == BASE or model in used_sources(document):
            continue
        field = f"ensemble.members.{name}.model"
        try:
            _check_revision(model, snapshot)
            plans.append(finder.find(snapshot, model, by_request=False))
        except NotFoundError as error:
            raise InvalidRequestError(f"{field}: {error.message}", param=field) from error
        except ServiceError as error:
            error.message, error.param = f"{field}: {error.message}", field
            raise
    return tuple(plans)


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
