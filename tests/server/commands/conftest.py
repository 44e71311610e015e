"""Fixtures of the commands' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.presets.tiny import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A folder with sources, and a database."""
    world = World(tmp_path)
    yield world
    world.close()
