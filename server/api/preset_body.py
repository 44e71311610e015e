"""The body of a preset: its document in JSON, or a mergekit configuration in YAML or JSON."""

from fastapi import Request
from pydantic import JsonValue

from server.api.body import JSON, check_content_type, read_body, read_json
from server.api.yaml_body import YAML, parse_yaml
from server.errors import InvalidRequestError
from server.presets.catalog import Catalog
from server.presets.document import RECIPE_FIELDS, PresetDocument, parse_document


async def read_document(request: Request, catalog: Catalog, name: str | None) -> PresetDocument:
    """Read a document. With `name` (from the URL) the body may leave its name out.

    A mergekit configuration is the whole body in YAML, or `{"name": …, "mergekit": {…}}` in JSON,
    where fields that are not the recipe's may stand beside it.
    """
    if _is_yaml(request):
        check_content_type(request, YAML)
        config = parse_yaml(await read_body(request))
        if name is None:
            raise InvalidRequestError(
                "a mergekit configuration has no name for the preset: give it as ?name=",
                param="name",
            )
        return parse_document(_native(config, {"name": name}, catalog), name=name)
    data = await read_json(request, (JSON, YAML[0]))
    if isinstance(data, dict) and "mergekit" in data:
        others = {key: value for key, value in data.items() if key != "mergekit"}
        data = _native(
            data["mergekit"], others if name is None else {"name": name, **others}, catalog
        )
    return parse_document(data, name=name)


def _is_yaml(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0]
    return media_type.strip().lower() in YAML


def _native(
    config: JsonValue, others: dict[str, JsonValue], catalog: Catalog
) -> dict[str, JsonValue]:
    """The document of a mergekit configuration, with fields that mergekit does not know."""
    if not isinstance(config, dict):
        raise InvalidRequestError(
            "mergekit: a configuration is a map with merge_method and models or slices, got "
            f"{type(config).__name__}",
            param="mergekit",
        )
    both = sorted(others.keys() & RECIPE_FIELDS)
    if both:
        raise InvalidRequestError(
            f"{', '.join(both)}: the mergekit configuration says this already; leave it out",
            param=both[0],
        )
    return {**others, **catalog.mergekit.read(config, str(others.get("name")))}
