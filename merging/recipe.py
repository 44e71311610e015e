"""A recipe: method, sources, parameters and seed; declarative, with one canonical JSON text."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from merging.base import Base
from merging.digest import canonical_json, json_digest
from merging.errors import RecipeError
from merging.methods import METHODS
from merging.methods.method import Method, Parameter
from merging.setting import Entry, Setting, chain, setting_json

BASE: Final = "base"
"""The name of the resident base among the sources."""


class Recipe(BaseModel):
    """What to merge and how. Building one from bad data raises RecipeError with every reason.

    `sources` maps a source's name to its own settings, `parameters` holds the recipe's settings and
    those that every source falls back to. The order of sources never matters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    base_model: Literal["base"] = BASE
    sources: dict[str, dict[str, JsonValue]] = Field(min_length=1)
    parameters: dict[str, JsonValue] = {}
    slices: JsonValue = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63, strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        reasons = list(_reasons(data)) if isinstance(data, Mapping) else []
        try:
            recipe = handler(data)
        except ValidationError as error:
            shape = [f"{_path(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
            raise RecipeError(shape + reasons) from None
        if reasons:
            raise RecipeError(reasons)
        return recipe

    def setting(self, parameter: Parameter, source: str | None = None) -> Setting:
        """What a parameter is set to, with what it falls back to when a filter does not match.

        Precedence: the source's own setting, the recipe's, the method's default.
        """
        places = [("parameters", self.parameters)]
        if source is not None:
            places.insert(0, (f"sources.{source}", self.sources[source]))
        settings = [
            parameter.parse(values[parameter.name], f"{path}.{parameter.name}")
            for path, values in places
            if parameter.name in values
        ]
        if parameter.default is not None:
            settings.append((Entry((parameter.default,)),))
        return chain(settings)

    def canonical(self, source_digests: Mapping[str, str], base: Base) -> str:
        """The canonical JSON text: defaults filled in, sources by content, and no names.

        `source_digests` maps every source but the base to the digest of its content.
        """
        return canonical_json(self._content(source_digests, base))

    def digest(self, source_digests: Mapping[str, str], base: Base) -> str:
        """Digest of the canonical text: equal digests mean equal weights, whatever the names."""
        return json_digest(self._content(source_digests, base))

    def _content(self, source_digests: Mapping[str, str], base: Base) -> JsonValue:
        method, digests = METHODS[self.method], {BASE: base.digest, **source_digests}
        sources = [
            [digests[name], _settings_json(self, method, name)] for name in sorted(self.sources)
        ]
        return {
            "method": self.method,
            "base": base.digest,
            "dtype": self.dtype or base.dtype,
            "sources": sorted(sources, key=canonical_json),
            "parameters": _settings_json(self, method, None),
            "slices": self.slices,
            "seed": self.seed,
        }


def _settings_json(recipe: Recipe, method: Method, source: str | None) -> JsonValue:
    scope = "recipe" if source is None else "source"
    parameters = (p for p in method.parameters if p.scope == scope and not p.doc.inert)
    return {p.name: setting_json(recipe.setting(p, source)) for p in parameters}


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc) or "recipe"


def _reasons(data: Mapping[str, object]) -> Iterator[str]:
    """What the types alone do not tell: every method, parameter and value that is wrong."""
    name, sources, parameters = data.get("method"), data.get("sources"), data.get("parameters")
    if not isinstance(name, str):
        return
    if name not in METHODS:
        yield f"method: {name!r} is not known; known are {', '.join(METHODS)}"
        return
    method = METHODS[name]
    shared = parameters if isinstance(parameters, Mapping) else {}
    yield from _setting_reasons(method, "parameters", shared, in_source=False)
    for source, settings in sources.items() if isinstance(sources, Mapping) else ():
        if isinstance(settings, Mapping):
            yield from _source_reasons(method, source, settings, shared)


def _source_reasons(
    method: Method, source: str, settings: Mapping[str, object], shared: Mapping[str, object]
) -> Iterator[str]:
    path = f"sources.{source}"
    if source == BASE and not method.takes_base:
        yield f"{path}: is not a source of {method.name}, its delta is zero; leave it out"
        return
    yield from _setting_reasons(method, path, settings, in_source=True)
    for parameter in method.parameters:
        required = parameter.scope == "source" and parameter.default is None
        if required and parameter.name not in settings and parameter.name not in shared:
            yield f"{path}.{parameter.name}: is missing"


def _setting_reasons(
    method: Method, path: str, settings: Mapping[str, object], in_source: bool
) -> Iterator[str]:
    for name, value in settings.items():
        parameter, known = method.parameter(name), ", ".join(p.name for p in method.parameters)
        if parameter is None:
            yield f"{path}.{name}: {method.name} has no parameter {name!r}; it has {known}"
        elif in_source and parameter.scope == "recipe":
            yield f"{path}.{name}: belongs to the whole recipe; put it under 'parameters'"
        else:
            try:
                parameter.parse(value, f"{path}.{name}")
            except RecipeError as error:
                yield from error.reasons
