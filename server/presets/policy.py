"""What callers may do: the operator's choice."""

from dataclasses import dataclass
from typing import Literal

OverrideLevel = Literal["none", "mode", "weights"]
InlineRecipes = Literal["off", "blend", "variant"]


@dataclass(frozen=True, slots=True)
class Policy:
    """`overrides` is the default of presets that do not set their own; "weights" includes "mode".

    `inline_recipes`: "off", recipes that compile to a blend, or those that need a variant too.
    `list_ensembles`: whether the list of models has the ensembles of presets too.
    """

    overrides: OverrideLevel
    inline_recipes: InlineRecipes
    serve_sources: bool
    list_ensembles: bool = False
