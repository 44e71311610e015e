"""mergekit's configurations, to and from recipes. The format is that of mergekit 0.1.5's config.py.

A few things are written in another way than they came, and mean the same: a `modules` of one module
becomes its content; a base_model among the models is only named as base_model; numbers as text
become numbers. A merge here computes in float32
whatever `dtype` says, which is that of the result.
"""

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from merging.errors import RecipeError
from merging.mergekit_reader import Reader
from merging.mergekit_writer import Writer
from merging.recipe import Recipe


def from_mergekit(
    config: Mapping[str, object], name_of: Callable[[str], str | None]
) -> dict[str, JsonValue]:
    """The fields of a recipe, from a configuration as YAML or JSON has it.

    `name_of` gives the name of a model ("base", or a source's) for what a configuration calls it:
    a name, a path or a hub id; None for one that is not known. Raises RecipeError that names
    everything without a native form; methods and parameters are left to `Recipe` to check.
    """
    reader = Reader(name_of)
    fields = reader.read(config)
    if reader.reasons:
        raise RecipeError(reader.reasons)
    return fields


def to_mergekit(recipe: Recipe, path_of: Callable[[str], str]) -> dict[str, JsonValue]:
    """The configuration with which mergekit does what a recipe says.

    `path_of` gives what to call a model: the base, or a source by name. mergekit takes the seed on
    its command line, so it is left out. Raises RecipeError that names everything that mergekit
    does not have.
    """
    writer = Writer(recipe, path_of)
    config = writer.write()
    if writer.reasons:
        raise RecipeError(writer.reasons)
    return config
