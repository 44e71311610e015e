"""The catalogue describes every rule, and only what the rules take."""

import inspect
import json

import pytest

from ensemble.catalog import RULES, RuleDescription
from ensemble.rule import compile_rule

ALL = list(RULES.values())


def test_the_three_rules_in_order() -> None:
    """The default comes first, under the names that contract.md fixes."""
    assert list(RULES) == ["task_arithmetic", "log_pool", "linear_pool"]


@pytest.mark.parametrize("rule", ALL, ids=list(RULES))
def test_a_description_is_plain_json(rule: RuleDescription) -> None:
    """What GET /v1/methods shows survives JSON, with the keys of a merge method's parameters."""
    found = rule.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["name"] == rule.name
    assert str(found["paper"]).startswith("https://")
    assert found["description"] == inspect.getdoc(rule.function)
    assert {"name", "scope", "type", "required", "default", "minimum", "maximum"} <= set(
        rule.parameters[0].describe()
    )


@pytest.mark.parametrize("rule", ALL, ids=list(RULES))
def test_the_described_options_are_those_that_compile(rule: RuleDescription) -> None:
    """Every described option compiles at its default; the weight alone is required."""
    options = {p.name: p.default for p in rule.parameters if p.scope == "rule"}
    assert compile_rule(rule.name, {"a": 1.0}, **options).rows  # type: ignore[arg-type]
    required = [p.name for p in rule.parameters if p.describe()["required"]]
    assert required == ["weight"]


@pytest.mark.parametrize("rule", ALL, ids=list(RULES))
def test_the_base_is_a_row_where_the_description_says_so(rule: RuleDescription) -> None:
    """`uses_base` and the rows of the compiled rule agree."""
    assert ("base" in compile_rule(rule.name, {"a": 0.5}).rows) == rule.uses_base


def test_choices_are_listed() -> None:
    """A string parameter says which values it takes, and defaults to the first."""
    (order,) = (p for p in RULES["linear_pool"].parameters if p.type == "string")
    assert order.describe()["choices"] == ["after", "before"]
    assert order.default == "after"
