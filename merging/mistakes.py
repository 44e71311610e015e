"""What is wrong with a recipe's data that types alone do not tell: every reason, before any use."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from merging.errors import RecipeError
from merging.methods import METHODS
from merging.methods.method import Method

BASE: Final = "base"
"""The name of the resident base among the models."""

UNION: Final = "union"
"""mergekit's name for the vocabulary of all models."""

METHOD: Final = "task_arithmetic"
"""The method of a recipe that names none."""

Values = Mapping[str, object]


def mistakes(data: Mapping[str, object]) -> Iterator[str]:
    """Every method, model, parameter and value that is wrong; wrong types are left to pydantic."""
    name = data.get("method", METHOD)
    if not isinstance(name, str):
        return
    if name not in METHODS:
        yield f"method: {name!r} is not known; known are {', '.join(METHODS)}"
        return
    method, shared = METHODS[name], _mapping(data.get("parameters"))
    sources = _mapping(data.get("sources"))
    yield from _setting_mistakes(method, "parameters", shared, in_source=False)
    for source, settings in sources.items():
        yield from _setting_mistakes(method, f"sources.{source}", _mapping(settings), True)
    yield from _ignored_base(method, "base_model", data.get("base_model"))
    slices = data.get("slices")
    if isinstance(slices, list | tuple):
        yield from _slice_mistakes(method, data, slices)
        return
    base_model = data.get("base_model", BASE)
    yield from _missing(method, "recipe", "parameters", [shared])
    for source, settings in sources.items():
        if source == base_model and method.base != "input":
            yield (
                f"sources.{source}: is not a source of {name} but its base_model, its delta is "
                "zero; leave it out"
            )
        elif isinstance(settings, Mapping):
            yield from _missing(method, "source", f"sources.{source}", [settings, shared])


def _slice_mistakes(
    method: Method, data: Mapping[str, object], slices: Sequence[object]
) -> Iterator[str]:
    sources = _mapping(data.get("sources"))
    used: set[str] = set()
    if not slices:
        yield "slices: are none; name some, or leave slices out to merge all layers"
        return
    for index, item in enumerate(slices):
        part = _dumped(item)
        base_model = None
        if method.base != "input":
            own = part.get("base_model")
            base_model = data.get("base_model", BASE) if own is None else own
        yield from _ignored_base(method, f"slices[{index}].base_model", part.get("base_model"))
        listed = [_dumped(source) for source in _list(part.get("sources"))]
        used |= {str(source.get("model")) for source in listed}
        yield from _part_mistakes(method, f"slices[{index}]", data, part, listed, base_model)
        for place, source in enumerate(listed):
            path = f"slices[{index}].sources[{place}]"
            yield from _slice_source_mistakes(method, path, data, part, source, base_model)
    for unused in sources.keys() - used:
        yield f"sources.{unused}: is in no slice; leave it out, or use it in one"


def _ignored_base(method: Method, path: str, base_model: object) -> Iterator[str]:
    """A base_model that the method would not look at; "base" is the default of every recipe."""
    if method.base == "input" and isinstance(base_model, str) and base_model not in ("", BASE):
        yield (
            f"{path}: {method.name} has no base_model; list {base_model!r} among the sources, and "
            "leave base_model out"
        )


def _part_mistakes(
    method: Method,
    path: str,
    data: Mapping[str, object],
    part: Values,
    listed: Sequence[Values],
    base_model: object,
) -> Iterator[str]:
    shared, own = _mapping(data.get("parameters")), _mapping(part.get("parameters"))
    yield from _setting_mistakes(method, f"{path}.parameters", own, in_source=False)
    yield from _missing(method, "recipe", f"{path}.parameters", [own, shared])
    models = [source.get("model") for source in listed]
    if not models and isinstance(part.get("sources"), list | tuple):
        yield f"{path}.sources: are none; name a model and its layers"
    if twice := sorted({str(model) for model in models if models.count(model) > 1}):
        names = ", ".join(map(repr, twice))
        yield f"{path}.sources: {names} is in it twice; use another slice for its other layers"
        return
    pairs = [pair for source in listed if (pair := _range(source)) is not None]
    if len({high - low for low, high in pairs}) > 1:
        shown = ", ".join(f"{source.get('model')} {source.get('layer_range')}" for source in listed)
        yield f"{path}.sources: must be of equally many layers, got {shown}"
    elif base_model is not None and base_model not in models and len(set(pairs)) > 1:
        yield (
            f"{path}.sources: base_model {base_model!r} is not among them, and they are of "
            "different layers; list it with the layer_range that it takes part with"
        )


def _slice_source_mistakes(
    method: Method,
    path: str,
    data: Mapping[str, object],
    part: Values,
    source: Values,
    base_model: object,
) -> Iterator[str]:
    model, own = source.get("model"), _mapping(source.get("parameters"))
    sources = _mapping(data.get("sources"))
    layers = _range(source)
    if layers is not None and not layers[0] < layers[1]:
        yield f"{path}.layer_range: {list(layers)} is empty; its end must be above its start"
    if model == base_model:
        if own:
            yield f"{path}.parameters: {model!r} is the base_model, which has none; leave them out"
        return
    yield from _setting_mistakes(method, f"{path}.parameters", own, in_source=True)
    if not isinstance(model, str):
        return
    if model not in sources:
        known = ", ".join(str(name) for name in sources)
        yield f"{path}.model: {model!r} is not one of the recipe's sources: {known}"
    levels = [own, _mapping(sources.get(model)), _mapping(part.get("parameters"))]
    yield from _missing(method, "source", path, [*levels, _mapping(data.get("parameters"))])


def _missing(method: Method, scope: str, path: str, levels: Sequence[Values]) -> Iterator[str]:
    for parameter in method.parameters:
        is_required = parameter.scope == scope and parameter.required
        if is_required and not any(parameter.name in level for level in levels):
            yield f"{path}.{parameter.name}: is missing"


def _setting_mistakes(
    method: Method, path: str, settings: Values, in_source: bool
) -> Iterator[str]:
    for name, value in settings.items():
        parameter = method.parameter(name)
        known = ", ".join(p.name for p in method.parameters) or "none"
        if parameter is None:
            yield f"{path}.{name}: {method.name} has no parameter {name!r}; it has {known}"
        elif in_source and parameter.scope == "recipe":
            yield f"{path}.{name}: belongs to the whole recipe; put it under 'parameters'"
        else:
            try:
                parameter.parse(value, f"{path}.{name}")
            except RecipeError as error:
                yield from error.reasons


def _range(source: Values) -> tuple[int, int] | None:
    match source.get("layer_range"):
        case [int(low), int(high)]:
            return low, high
    return None


def _dumped(item: object) -> Values:
    """A part of a recipe as plain data, also where it is already a model."""
    dump = getattr(item, "model_dump", None)
    return _mapping(dump() if dump is not None else item)


def _mapping(value: object) -> Values:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
