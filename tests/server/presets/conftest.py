"""Fixtures of the catalog's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.presets.catalog import Catalog
from tests.server.presets.tiny import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def catalog(world: World) -> Catalog:
    """An open catalog with the sources math and code, and no preset."""
    return world.open_with_sources()
