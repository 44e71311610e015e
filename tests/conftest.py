"""Settings and fixtures for every test."""

import logging
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # tiny models: handing work to a second thread costs more than it saves


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
