"""Fixtures of the API's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server.api.scripted import CONFIG, Harness, ScriptedEngine, make_app, running
from tests.server.presets.tiny import OPEN_POLICY, World, preset

StartApp = Callable[..., Harness]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def start(world: World) -> Iterator[StartApp]:
    """Start an application with the sources math and code and the preset tutor.

    Options are settings, but for `base`, `policy`, `config` and `chat_template`.
    """
    with ExitStack() as stack:

        def start_app(base=None, policy=OPEN_POLICY, config=CONFIG, **options) -> Harness:
            engine = ScriptedEngine(config)
            catalog = world.open_with_sources(base=base, policy=policy)
            catalog.seed_presets([preset()], "the test")
            return stack.enter_context(running(make_app(engine, catalog, **options), engine))

        yield start_app


@pytest.fixture
def api(start: StartApp) -> Harness:
    """An application on loopback without keys."""
    return start()
