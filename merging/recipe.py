"""A recipe: method, models, parameters and seed; declarative, with one canonical JSON text."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, Self

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
from merging.methods.method import Method
from merging.methods.parameter import Parameter
from merging.mistakes import BASE, METHOD, UNION, mistakes
from merging.section import Section
from merging.setting import Setting, chain, setting_json

Settings = dict[str, JsonValue]
Layer = Annotated[int, Field(ge=0, strict=True)]
Model = Annotated[str, Field(min_length=1)]
DType = Literal["bfloat16", "float16", "float32"]

__all__ = ["BASE", "METHOD", "UNION", "Recipe", "Slice", "SliceSource"]

FROZEN: Final = ConfigDict(extra="forbid", frozen=True)


class SliceSource(BaseModel):
    """Layers `layer_range[0]` to `layer_range[1] - 1` of one model, with its own settings."""

    model_config = FROZEN

    model: str
    layer_range: tuple[Layer, Layer]
    parameters: Settings = {}


class Slice(BaseModel):
    """Consecutive layers of the result, merged from as many of each source; mergekit's shape."""

    model_config = FROZEN

    sources: tuple[SliceSource, ...]
    base_model: Model | None = None
    parameters: Settings = {}


class Recipe(BaseModel):
    """What to merge and how. Building one from bad data raises RecipeError with every reason.

    `sources` maps a source's name to its own settings, `parameters` holds the recipe's settings and
    those that every source falls back to. The order of sources never matters, that of slices does.
    `base_model` is what deltas are relative to, and the first end of a method with two: a source,
    "base" (the resident model), or None where the method can do without. A method that takes its
    base as one more source has none: only "base" or None is taken, and neither is looked at.
    `dtype` is that of files that are written: what is served is of the base's.

    With a `tokenizer_source` the rows of embeddings and heads are aligned, token by token, to the
    vocabulary of the base, which is the result's: "base", or what means the same there, "union" or
    a source. Without one all models must have that vocabulary.
    """

    model_config = FROZEN

    method: str = METHOD
    base_model: Model | None = BASE
    sources: dict[str, Settings] = Field(min_length=1)
    parameters: Settings = {}
    slices: tuple[Slice, ...] | None = None
    dtype: DType | None = None
    seed: int = Field(default=0, ge=0, lt=2**63, strict=True)
    tokenizer_source: Model | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        reasons = list(mistakes(data)) if isinstance(data, Mapping) else []
        try:
            recipe = handler(data)
        except ValidationError as error:
            shape = [f"{_path(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
            raise RecipeError(shape + reasons) from None
        if reasons:
            raise RecipeError(reasons)
        return recipe

    @property
    def models(self) -> frozenset[str]:
        """The names of all models whose content decides the result, beside the resident base."""
        bases = (section.base_model for section in self.sections(1))
        return frozenset({*self.sources, *(n for n in bases if n is not None)}) - {BASE}

    def sections(
        self, num_layers: int, digests: Mapping[str, str] | None = None
    ) -> tuple[Section, ...]:
        """The slices, or one section of all `num_layers` layers.

        The sources of each are sorted by name, or with `digests` by content, so that names do not
        decide how sums are rounded.
        """
        if self.slices is None:
            base_model = None if self._method.base == "input" else self.base_model
            starts = dict.fromkeys(self.sources, 0) | (
                {} if base_model is None else {base_model: 0}
            )
            sources = self._sorted(self.sources, None, digests)
            return (Section(None, base_model, sources, starts, num_layers),)
        return tuple(self._section(index, part, digests) for index, part in enumerate(self.slices))

    def _section(self, index: int, part: Slice, digests: Mapping[str, str] | None) -> Section:
        base_model = self.base_model if part.base_model is None else part.base_model
        if self._method.base == "input":
            base_model = None
        starts = {source.model: source.layer_range[0] for source in part.sources}
        sources = self._sorted(starts.keys() - {base_model}, index, digests)
        low, high = part.sources[0].layer_range
        if base_model is not None:  # one that is not listed takes part with the same layers
            starts.setdefault(base_model, low)
        return Section(index, base_model, sources, starts, high - low)

    @property
    def _method(self) -> Method:
        return METHODS[self.method]

    def _sorted(
        self, names: Iterable[str], index: int | None, digests: Mapping[str, str] | None
    ) -> tuple[str, ...]:
        known = {} if digests is None else {**digests, BASE: ""}
        found = sorted(names, key=lambda name: (known.get(name, ""), name))
        if len({known.get(name, name) for name in found}) < len(found):  # sources of one content
            found.sort(
                key=lambda n: (known.get(n, ""), canonical_json(self.settings_json(n, index)))
            )
        return tuple(found)

    def setting(
        self, parameter: Parameter, source: str | None = None, index: int | None = None
    ) -> Setting:
        """What a parameter is set to, with what it falls back to when a filter does not match.

        Precedence: the source's own setting in the slice of this `index`, its own in `sources`, the
        slice's, the recipe's, the method's default.
        """
        part = self.slices[index] if self.slices is not None and index is not None else None
        places: list[Settings] = [self.parameters]
        if part is not None:
            places.insert(0, part.parameters)
        if source is not None:
            places.insert(0, self.sources.get(source, {}))
            listed = part.sources if part is not None else ()
            places = [s.parameters for s in listed if s.model == source] + places
        settings = [
            parameter.parse(values[parameter.name], parameter.name)
            for values in places
            if parameter.name in values
        ]
        return chain([*settings, parameter.default_setting])

    def canonical(self, digests: Mapping[str, str], base: Base) -> str:
        """The canonical JSON text: defaults filled in, models by content, and no names.

        `digests` maps each of `models` to the digest of its content.
        """
        return canonical_json(self._content(digests, base))

    def digest(self, digests: Mapping[str, str], base: Base) -> str:
        """Digest of the canonical text: equal digests mean equal weights, whatever the names.

        The dtype in it is that of `base`, in which the result is.
        """
        return json_digest(self._content(digests, base))

    def _content(self, digests: Mapping[str, str], base: Base) -> JsonValue:
        # The base registered as a checkpoint is merged as one: rounded, and in layers of its own.
        twin = f"checkpoint {base.digest}"
        known = {n: twin if digest == base.digest else digest for n, digest in digests.items()}
        known[BASE] = base.digest
        return {
            "method": self.method,
            "base": base.digest,
            "dtype": base.dtype,
            "slices": [self._slice(part, known) for part in self.sections(base.num_layers)],
            "seed": self.seed,
            # whatever it names, it is the base's vocabulary
            **({} if self.tokenizer_source is None else {"tokenizer_source": BASE}),
        }

    def _slice(self, part: Section, digests: Mapping[str, str]) -> JsonValue:
        sources: list[JsonValue] = [
            [digests[name], part.starts[name], self.settings_json(name, part.index)]
            for name in part.sources
        ]
        base: JsonValue = None
        if part.base_model is not None:
            base = [digests[part.base_model], part.starts[part.base_model]]
        return {
            "num_layers": part.num_layers,
            "base_model": base,
            "sources": sorted(sources, key=canonical_json),
            "parameters": self.settings_json(None, part.index),
        }

    def settings_json(self, source: str | None, index: int | None) -> Settings:
        """All that is set for a source, or for a slice if it is None, with defaults filled in."""
        scope = "recipe" if source is None else "source"
        return {
            p.name: setting_json(self.setting(p, source, index))
            for p in self._method.parameters
            if p.scope == scope and not p.doc.inert
        }


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc) or "recipe"
