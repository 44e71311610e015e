"""Weights that explain a preset: built though callers' own are not, and never at another's cost."""

from pathlib import Path

import pytest

from server.errors import ForbiddenError, UnprocessableError
from server.presets.catalog import Catalog, Edit
from server.presets.policy import Policy
from server.presets.served import Overrides
from tests.server.presets.forge import WHOLE, VariantWorld
from tests.server.presets.tiny import preset

LESS = Overrides(weights={"math": 0.0})
PROBE = Overrides(weights={"math": 0.0}, is_probe=True)


@pytest.fixture
def world(tmp_path: Path):
    world = VariantWorld(tmp_path)
    yield world
    world.close()


def mixed(catalog: Catalog, **fields: object) -> None:
    """A preset of an adapter and a checkpoint, whose weights are written."""
    sources = {"math": {"weight": 0.5}, "ft": {"weight": 0.5}}
    catalog.create(preset(sources=sources, **fields), edit=Edit())


def test_a_probe_is_built_where_a_request_is_refused(world) -> None:
    """The default server builds nothing for a request, and still explains a merge."""
    catalog = world.open_with_sources()
    mixed(catalog)
    with pytest.raises(ForbiddenError, match="--inline-recipes is 'blend'"):
        catalog.resolve("tutor", LESS)
    probe = catalog.resolve("tutor", PROBE)
    assert (probe.path, probe.revision) == ("variant", 1)
    assert probe.digest != catalog.resolve("tutor").digest


def test_a_probe_needs_the_right_to_override_weights(world) -> None:
    """What a preset's callers may not change is not built for them either."""
    catalog = world.open_with_sources()
    mixed(catalog, overrides="mode")
    with pytest.raises(ForbiddenError, match="other weights: its `overrides` is 'mode'"):
        catalog.resolve("tutor", PROBE)


def test_where_nothing_is_built_for_anybody_probes_are_not(world) -> None:
    """The operator's `off` holds, and is named."""
    world.open_with_sources()
    policy = Policy(overrides="weights", inline_recipes="off", serve_sources=True)
    catalog = world.open(policy=policy)
    mixed(catalog)
    with pytest.raises(ForbiddenError, match="--inline-recipes is 'off'"):
        catalog.resolve("tutor", PROBE)


@pytest.mark.parametrize(("budget", "fits"), [(3 * WHOLE - 1, False), (3 * WHOLE, True)])
def test_a_probe_takes_only_what_is_free_and_leaves_as_much(world, budget, fits) -> None:
    """What is served stays, and an edit still finds room: 1 serves, 1 is asked for, 1 is left."""
    catalog = world.open_with_sources(budget=budget)
    mixed(catalog)
    before = catalog.resolve("tutor").members[0].weights
    if fits:
        catalog.resolve("tutor", PROBE)
    else:
        with pytest.raises(UnprocessableError, match="start the server with more --variant-mem"):
            catalog.resolve("tutor", PROBE)
    assert catalog.resolve("tutor").members[0].weights is before
