"""Methods of other packages come in by entry points, and cannot break or replace built-in ones."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from merging.methods import BUILT_IN
from merging.methods.combination import Combination
from merging.methods.method import Method, method
from merging.methods.plugins import GROUP, load_plugins


def half_of(name: str) -> Method:
    @method(name, title="Half", paper="https://example.org")
    def half() -> Combination:
        """Half of every delta."""
        return Combination((0.5,))

    return half


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a method, one with a taken name, and something else."""
    module = ModuleType("half_package")
    vars(module).update(half=half_of("half"), ties=half_of("ties"), number=3)
    monkeypatch.setitem(sys.modules, "half_package", module)


def point(name: str) -> EntryPoint:
    return EntryPoint(name, f"half_package:{name}", GROUP)


def test_a_method_is_found() -> None:
    """An entry point of the group is a Method, ready to use."""
    plugins = load_plugins(BUILT_IN, [point("half")])
    assert [m.name for m in plugins.methods] == ["half"]
    assert plugins.problems == ()


def test_a_broken_one_is_reported_and_the_rest_is_loaded() -> None:
    """Whatever an import raises, and what is no Method, is one sentence each."""
    broken = [EntryPoint("gone", "no_such_package:x", GROUP), point("number")]
    plugins = load_plugins(BUILT_IN, [*broken, point("half")])
    assert [m.name for m in plugins.methods] == ["half"]
    assert len(plugins.problems) == 2
    assert "no_such_package:x" in plugins.problems[0]
    assert "ModuleNotFoundError" in plugins.problems[0]
    assert "is not a Method but int" in plugins.problems[1]


def test_a_name_that_is_taken_is_an_error_that_names_both() -> None:
    """A built-in method is not replaced, and the user learns by which package it would be."""
    with pytest.raises(
        ValueError, match=r"mergeserve's own 'ties' and 'ties' \(half_package:ties\)"
    ):
        load_plugins(BUILT_IN, [point("ties")])


def test_two_packages_with_one_name_are_an_error() -> None:
    """Which of them would win must not depend on the order."""
    other = EntryPoint("another", "half_package:half", GROUP)
    with pytest.raises(ValueError, match="two methods are named 'half'"):
        load_plugins(BUILT_IN, [point("half"), other])
