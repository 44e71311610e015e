"""Fixtures of the commands' tests."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.presets.tiny import World


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command sends the log of its process to the stderr of its test, which is gone after it."""
    names = (None, "uvicorn", "uvicorn.error", "httpx", "alembic")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A folder with sources, and a database."""
    world = World(tmp_path)
    yield world
    world.close()
