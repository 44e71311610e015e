"""Write a recipe as a mergekit configuration."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pydantic import JsonValue

from merging.mergekit_setting import fold
from merging.methods import METHODS
from merging.recipe import BASE, UNION, Recipe, Slice
from merging.section import Section
from merging.setting import setting_json

Settings = dict[str, JsonValue]

MERGEKIT_METHODS: Final = (
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties"),
    *("dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear"),
    *("sce", "ram", "ramplus_tl", "model_stock", "nearswap", "arcee_fusion", "passthrough"),
)
NATIVE_PARAMETERS: Final = frozenset({"semantics", "scope", "rescale_norm"})
"""Parameters that only the methods here have; by default they do what mergekit does."""


class Writer:
    """Writes one recipe. `reasons` has what mergekit does not have, after `write`."""

    def __init__(self, recipe: Recipe, path_of: Callable[[str], str]) -> None:
        self.recipe, self.method = recipe, METHODS[recipe.method]
        self._path_of = path_of
        self.reasons: list[str] = []
        if recipe.method not in MERGEKIT_METHODS:
            self.reasons.append(f"method: mergekit has no {recipe.method}")

    def write(self) -> Settings:
        """The configuration; it holds only if there are no `reasons`."""
        recipe = self.recipe
        config: Settings = {"merge_method": recipe.method}
        if self.method.base != "input" and recipe.base_model is not None:
            config["base_model"] = self._path_of(recipe.base_model)
        if recipe.slices is None:
            config["models"] = [
                {"model": self._path_of(name), **self._parameters(settings, f"sources.{name}")}
                for name, settings in recipe.sources.items()
            ]
        else:
            sections = recipe.sections(1)
            pairs = zip(recipe.slices, sections, strict=True)
            config["slices"] = [self._slice(part, section) for part, section in pairs]
        config |= self._parameters(recipe.parameters, "parameters")
        if recipe.tokenizer_source in (BASE, UNION):
            config["tokenizer_source"] = recipe.tokenizer_source
        elif recipe.tokenizer_source is not None:
            config["tokenizer_source"] = self._path_of(recipe.tokenizer_source)
        if recipe.dtype is None:
            return config
        # mergekit computes in `dtype`, a merge here in float32
        return config | {"dtype": "float32", "out_dtype": recipe.dtype}

    def _slice(self, part: Slice, section: Section) -> Settings:
        path = f"slices[{section.index}]"
        sources: list[JsonValue] = []
        for source in part.sources:
            levels = [source.parameters, self.recipe.sources.get(source.model, {})]
            own = {} if source.model == section.base_model else fold(levels)
            written: Settings = {"model": self._path_of(source.model)}
            written["layer_range"] = list(source.layer_range)
            sources.append(written | self._parameters(own, f"{path}.sources.{source.model}"))
        base_model = section.base_model
        if base_model is not None and base_model not in {source.model for source in part.sources}:
            start = section.starts[base_model]
            layers: list[JsonValue] = [start, start + section.num_layers]
            sources.append({"model": self._path_of(base_model), "layer_range": layers})
        result: Settings = {"sources": sources}
        if part.base_model is not None and base_model is not None:
            result["base_model"] = self._path_of(part.base_model)
        return result | self._parameters(part.parameters, f"{path}.parameters")

    def _parameters(self, settings: Mapping[str, JsonValue], path: str) -> Settings:
        """The settings under the key that mergekit has them; no key if there are none."""
        for name in self._native(settings):
            self.reasons.append(f"{path}.{name}: mergekit has no such parameter; leave it out")
        kept = {name: item for name, item in settings.items() if name not in NATIVE_PARAMETERS}
        return {"parameters": kept} if kept else {}

    def _native(self, settings: Mapping[str, JsonValue]) -> Iterable[str]:
        """Those of the settings that ask for what mergekit does not do."""
        for name in NATIVE_PARAMETERS & settings.keys():
            parameter = self.method.parameter(name)
            assert parameter is not None, f"{self.method.name} has no {name}"
            if settings[name] != setting_json(parameter.default_setting):
                yield name
