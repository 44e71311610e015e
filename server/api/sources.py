"""Routes of sources: registered adapters and checkpoints."""

from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, JsonValue

from server.api.body import json_body
from server.api.conditions import EditDep, no_conditions
from server.api.lifecycle import ServiceDep
from server.api.query import only_query
from server.api.router import Router
from server.api.schemas import Body
from server.api.service import Service
from server.errors import InvalidRequestError, NotFoundError
from server.presets.record import SourceCard

router = Router(prefix="/v1/sources")

FolderPath = Annotated[str, Field(min_length=1, max_length=4096)]


class NewSource(Body):
    """`POST /v1/sources`."""

    name: str
    path: FolderPath
    parent: str | None = None


class NewContent(Body):
    """`PUT /v1/sources/{name}`. Without `parent` it keeps the one that it has; null is none."""

    name: str | None = None
    path: FolderPath
    parent: str | None = None


@router.get("", dependencies=[Depends(only_query())])
def list_sources(service: ServiceDep) -> dict[str, JsonValue]:
    """Every source."""
    return {"object": "list", "data": [card.to_json() for card in service.catalog.sources()]}


@router.post("", dependencies=[Depends(only_query())])
async def register_source(
    service: ServiceDep, body: Annotated[NewSource, Depends(json_body(NewSource))]
) -> Response:
    """Register an adapter or a checkpoint from a folder inside a `--source-dir`."""
    catalog = service.catalog
    card = await service.edit(catalog.register_source, body.name, body.path, body.parent)
    card = await _tried(service, card)
    headers = {"Location": f"/v1/sources/{card.name}"}
    return JSONResponse(card.to_json(), status_code=201, headers=headers)


@router.get("/{name}", dependencies=[Depends(only_query())])
def get_source(name: str, service: ServiceDep) -> dict[str, JsonValue]:
    """One source."""
    return service.catalog.source(name).to_json()


@router.put("/{name}", dependencies=[Depends(only_query("message")), Depends(no_conditions)])
async def replace_source(
    request: Request,
    name: str,
    service: ServiceDep,
    edit: EditDep,
    body: Annotated[NewContent, Depends(json_body(NewContent))],
) -> Response:
    """Give a source new content; every preset that uses it gets a new revision, all or none."""
    if body.name not in (None, name):
        raise InvalidRequestError(
            f"name: a source cannot be renamed from {name!r} to {body.name!r}; leave it out",
            param="name",
        )
    catalog, parent = service.catalog, body.parent
    if "parent" not in body.model_fields_set:
        parent = catalog.source(name).parent
    card, records = await service.edit(catalog.replace_source, name, body.path, parent, edit=edit)
    card = await _tried(service, card)
    request.state.preset = ",".join(record.label for record in records)
    revisions: list[JsonValue] = [
        {"name": record.name, "revision": record.revision} for record in records
    ]
    return JSONResponse({**card.to_json(), "new_revisions": revisions})


@router.delete("/{name}", dependencies=[Depends(only_query()), Depends(no_conditions)])
def delete_source(name: str, service: ServiceDep) -> Response:
    """Forget a source that no preset uses."""
    service.catalog.delete_source(name)
    return Response(status_code=204)


async def _tried(service: Service, card: SourceCard) -> SourceCard:
    """The card once the source was tried on plain text, if that does not take long."""
    if service.trials is None:
        return card
    await service.trials.settled(card.name)
    try:
        return service.catalog.source(card.name)
    except NotFoundError:  # deleted meanwhile
        return card
