"""How a preset gets its next revision: from an edit, or because its sources changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from merging.plan import Plan
from server.errors import ServiceError
from server.presets.document import PresetDocument
from server.presets.planner import Planner
from server.presets.record import Edit, PresetRecord, StoredRevision
from server.presets.snapshot import Preset, Serving
from server.presets.sources import Source


def new_revision(
    document: PresetDocument, plan: Plan, edit: Edit, *, number: int, at: datetime
) -> StoredRevision:
    """A revision that is planned and not yet stored."""
    record = PresetRecord(
        document=document,
        revision=number,
        digest=plan.digest,
        state="ready" if edit.wait else "building",
        path=path_of(document, plan),
        author=edit.author,
        message=edit.message,
        created_at=at,
        updated_at=at,
    )
    return StoredRevision(record, source_digests(plan))


def path_of(document: PresetDocument, plan: Plan) -> str:
    """How a preset with this plan is served."""
    return "ensemble" if document.mode == "ensemble" else plan.path


def source_digests(plan: Plan) -> Mapping[str, str]:
    """What a plan was made from: digests of content by source name."""
    return {name: content.digest for name, content in plan.sources.items()}


def ready(serving: Serving) -> Preset:
    """A preset whose newest revision serves."""
    record, plan = serving.stored.record, serving.plan
    path = path_of(record.document, plan)
    record = replace(record, state="ready", digest=plan.digest, path=path, reasons=())
    stored = replace(serving.stored, record=record)
    return Preset(stored, replace(serving, stored=stored))


def building(stored: StoredRevision, serving: Serving | None) -> Preset:
    """A preset whose newest revision is yet to be built; an older one may serve meanwhile."""
    record = replace(stored.record, state="building")
    return Preset(replace(stored, record=record), serving)


def failed(
    stored: StoredRevision, reasons: Sequence[str], serving: Serving | None = None
) -> Preset:
    """A preset whose newest revision cannot be built; an older one may go on serving."""
    record = replace(stored.record, state="failed", reasons=tuple(reasons))
    return Preset(replace(stored, record=record), serving)


def refreshed(
    head: StoredRevision,
    sources: Mapping[str, Source],
    planner: Planner,
    edit: Edit,
    at: datetime,
) -> Preset:
    """The preset with this head on these sources: as it was, at its next revision, or failed."""
    document = head.record.document
    try:
        plan = planner.plan_document(document, sources)
    except ServiceError as error:
        return failed(head, [error.message])
    if source_digests(plan) == head.sources:
        return ready(Serving(head, plan))
    number = head.record.revision + 1
    return ready(Serving(new_revision(document, plan, edit, number=number, at=at), plan))


def is_revised(head: StoredRevision, after: Preset) -> bool:
    """Whether a refresh made a new revision."""
    return after.record.revision > head.record.revision
