"""Routes of presets: documents, revisions, conditional edits."""

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, JsonValue

from server.api.body import JSON, MERGE_PATCH, json_body, read_json
from server.api.conditions import EditDep, check_if_match, etag, is_known
from server.api.lifecycle import ServiceDep
from server.api.preset_body import read_document
from server.api.query import only_query
from server.api.router import Router
from server.api.schemas import Body
from server.api.yaml_body import YAML, to_yaml
from server.presets.record import Edit, EditResult, PresetRecord

router = Router(prefix="/v1/presets")

Revision = Annotated[int | None, Query(ge=1, lt=10**18)]


class RollbackBody(Body):
    """`POST /v1/presets/{name}/rollback`."""

    revision: Annotated[int, Field(ge=1, lt=10**18)]


@router.get("", dependencies=[Depends(only_query())])
def list_presets(service: ServiceDep) -> dict[str, JsonValue]:
    """The newest revision of every preset."""
    return _list(service.catalog.presets())


@router.post("", dependencies=[Depends(only_query("dry_run", "message", "name"))])
async def create_preset(
    request: Request,
    service: ServiceDep,
    edit: EditDep,
    dry_run: bool = False,
    name: str | None = None,
) -> Response:
    """Create a preset, or with `dry_run` say what it would be."""
    document = await read_document(request, service.catalog, name)
    if dry_run:
        record, explanation = await service.edit(service.catalog.validate, document, edit=edit)
        return JSONResponse({**record.to_json(), "dry_run": True, "explain": explanation})
    record = await service.edit(service.catalog.create, document, edit=edit)
    return _edited(request, EditResult(record, created=True, changed=True), edit)


@router.get("/{name}", dependencies=[Depends(only_query("revision", "format"))])
def get_preset(
    request: Request,
    name: str,
    service: ServiceDep,
    revision: Revision = None,
    format: Literal["native", "mergekit"] = "native",
) -> Response:
    """A preset, or one of its kept revisions; its recipe as mergekit's, in JSON or YAML."""
    record = service.catalog.preset(name, revision)
    check_if_match(request, record.revision)
    if format == "mergekit":
        return _mergekit(request, service.catalog.mergekit.write(record), record.revision)
    if is_known(request, record.revision):
        return Response(status_code=304, headers={"ETag": etag(record.revision)})
    return _document(record)


@router.put("/{name}", dependencies=[Depends(only_query("message"))])
async def put_preset(request: Request, name: str, service: ServiceDep, edit: EditDep) -> Response:
    """Create a preset or replace its document."""
    document = await read_document(request, service.catalog, name)
    result = await service.edit(service.catalog.replace, name, document, edit=edit)
    return _edited(request, result, edit)


@router.patch("/{name}", dependencies=[Depends(only_query("message"))])
async def patch_preset(request: Request, name: str, service: ServiceDep, edit: EditDep) -> Response:
    """Apply a JSON merge patch (RFC 7396)."""
    patch = await read_json(request, (MERGE_PATCH, JSON))
    result = await service.edit(service.catalog.patch, name, patch, edit=edit)
    return _edited(request, result, edit)


@router.delete("/{name}", dependencies=[Depends(only_query("message"))])
def delete_preset(name: str, service: ServiceDep, edit: EditDep) -> Response:
    """Delete a preset; requests in flight finish."""
    service.catalog.delete(name, edit=edit)
    return Response(status_code=204)


@router.get("/{name}/revisions", dependencies=[Depends(only_query())])
def list_revisions(name: str, service: ServiceDep) -> dict[str, JsonValue]:
    """The kept revisions of a preset, newest first."""
    return _list(service.catalog.revisions(name))


@router.post("/{name}/rollback", dependencies=[Depends(only_query("message"))])
async def roll_back(
    request: Request,
    name: str,
    service: ServiceDep,
    edit: EditDep,
    body: Annotated[RollbackBody, Depends(json_body(RollbackBody))],
) -> Response:
    """Make a new revision of what an old one was."""
    edit = replace(edit, message=edit.message or f"rolled back to {body.revision}")
    result = await service.edit(service.catalog.rollback, name, body.revision, edit=edit)
    return _edited(request, result, edit)


@router.get("/{name}/explain", dependencies=[Depends(only_query("revision", "interference"))])
def explain_preset(
    name: str, service: ServiceDep, revision: Revision = None, interference: bool | None = None
) -> dict[str, JsonValue]:
    """What a preset resolves to, tensor by tensor, and why, and how its sources agree."""
    return service.catalog.explain(name, revision, interference=interference)


def _list(records: list[PresetRecord]) -> dict[str, JsonValue]:
    return {"object": "list", "data": [record.to_json() for record in records]}


def _document(
    record: PresetRecord, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    all_headers = {"ETag": etag(record.revision), **(headers or {})}
    return JSONResponse(record.to_json(), status_code=status, headers=all_headers)


def _mergekit(request: Request, config: dict[str, JsonValue], revision: int) -> Response:
    """YAML for those who accept it and not JSON, else JSON."""
    headers = {"ETag": etag(revision), "Vary": "Accept"}
    accept = request.headers.get("accept", "")
    if "yaml" in accept and "json" not in accept:
        return Response(to_yaml(config), headers=headers, media_type=YAML[0])
    return JSONResponse(config, headers=headers)


def _edited(request: Request, result: EditResult, edit: Edit) -> Response:
    """201 for what is new, 202 for what was asked to be answered at once, else 200."""
    request.state.preset = result.record.label
    headers = {}
    if result.created:
        headers["Location"] = f"/v1/presets/{result.record.name}"
    if result.changed and not edit.wait:
        headers["Preference-Applied"] = "respond-async"
        return _document(result.record, 202, headers)
    return _document(result.record, 201 if result.created else 200, headers)
