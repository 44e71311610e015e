"""The rules as the outside sees them: names, parameters, defaults, bounds and papers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ensemble import rules

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class RuleParameter:
    """One parameter: a value per member (`scope` "source"), or one for the rule.

    A `default` of None: required. `choices` lists the values of a string.
    """

    name: str
    scope: Literal["source", "rule"]
    type: Literal["number", "string"]
    default: float | str | None
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def describe(self) -> dict[str, Json]:
        """The parameter as plain JSON, with the keys of a merge method's."""
        return {
            "name": self.name,
            "scope": self.scope,
            "type": self.type,
            "required": self.default is None,
            "default": self.default,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "choices": list(self.choices) or None,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class RuleDescription:
    """A rule that an ensemble can name. `uses_base`: the base is one of its rows."""

    name: str
    title: str
    paper: str
    uses_base: bool
    parameters: tuple[RuleParameter, ...]
    function: Callable[..., object]

    @property
    def description(self) -> str:
        """What the rule computes: the docstring of its function."""
        description = inspect.getdoc(self.function)
        assert description, f"{self.name} has no docstring"
        return description

    def describe(self) -> dict[str, Json]:
        """The rule and its parameters as plain JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "description": self.description,
            "uses_base": self.uses_base,
            "parameters": [parameter.describe() for parameter in self.parameters],
        }


_ALPHA = RuleParameter(
    "plausibility_alpha",
    "rule",
    "number",
    0.0,
    "Rule out tokens less likely than this share of the best token under the members of positive "
    "weight; 0 rules out none. For negative weights.",
    0.0,
    1.0,
)
_ORDER = RuleParameter(
    "temperature_order",
    "rule",
    "string",
    "after",
    "Whether the temperature acts on the combined distribution or on each member before it is "
    "combined; this matters in linear_pool alone.",
    choices=("after", "before"),
)

_DESCRIPTIONS = (
    RuleDescription(
        name="task_arithmetic",
        title="Task arithmetic of logits",
        paper="https://arxiv.org/abs/2401.08565",
        uses_base=True,
        parameters=(
            RuleParameter(
                "weight",
                "source",
                "number",
                None,
                "Lambda: factor on the member's difference to the base. Any sign, any sum.",
            ),
            _ORDER,
            _ALPHA,
        ),
        function=rules.task_arithmetic,
    ),
    RuleDescription(
        name="log_pool",
        title="Logarithmic pool",
        paper="https://doi.org/10.1162/089976602760128018",
        uses_base=False,
        parameters=(
            RuleParameter(
                "weight",
                "source",
                "number",
                None,
                "Exponent of the member, divided by the sum of all, which must be positive.",
            ),
            _ORDER,
            _ALPHA,
        ),
        function=rules.log_pool,
    ),
    RuleDescription(
        name="linear_pool",
        title="Linear pool",
        paper="https://arxiv.org/abs/2310.00035",
        uses_base=False,
        parameters=(
            RuleParameter(
                "weight",
                "source",
                "number",
                None,
                "Share of the member in the mean, divided by the sum of all.",
                minimum=0.0,
            ),
            _ORDER,
        ),
        function=rules.linear_pool,
    ),
)

RULES: Mapping[str, RuleDescription] = {rule.name: rule for rule in _DESCRIPTIONS}
"""The rules by name, in the order in which they are shown."""
