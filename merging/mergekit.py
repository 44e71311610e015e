"""mergekit's configurations, to and from recipes. The format is that of mergekit 0.1.5's config.py.

A few things are written in another way than they came, and mean the same: a `modules` of one module
becomes its content; a base_model among the models is only named as base_model; numbers as text
become numbers. A merge here computes in float32
whatever `dtype` says, which is that of the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from merging.errors import RecipeError
from merging.mergekit_reader import EXPERTS, Reader
from merging.mergekit_writer import Writer
from merging.recipe import BASE, Recipe

__all__ = ["EXPERTS", "Converted", "from_mergekit", "to_mergekit"]


@dataclass(frozen=True, slots=True)
class Converted:
    """The `fields` of a recipe, and what the configuration says beside them that mergekit does not
    read, or that a preset does not have: `ignored`, one sentence each.
    """

    fields: dict[str, JsonValue]
    ignored: tuple[str, ...]


def from_mergekit(config: Mapping[str, object], name_of: Callable[[str], str | None]) -> Converted:
    """The fields of a recipe, from a configuration as YAML or JSON has it.

    `name_of` gives the name of a model ("base", or a source's) for what a configuration calls it:
    a name, a path or a hub id; None for one that is not known. What mergekit does not read is left
    out. Raises RecipeError that names everything without a native form, or that is wrong; then
    what was left out is among the reasons, since a misspelled key may be one.
    """
    reader = Reader(name_of)
    fields = reader.read(config)
    if reader.reasons:
        raise RecipeError(reader.reasons)
    try:
        Recipe.model_validate(fields)
    except RecipeError as error:
        told = [_as_spelled(reason, reader.spellings) for reason in error.reasons]
        raise RecipeError([*told, *reader.ignored]) from error
    return Converted(fields, tuple(reader.ignored))


def _as_spelled(reason: str, spellings: Mapping[str, str]) -> str:
    """A reason with the base called as the configuration calls it."""
    return reason.replace(repr(BASE), repr(spellings.get(BASE, BASE)))


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
