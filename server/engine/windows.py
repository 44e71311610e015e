"""Windows made narrow for a while, so that a short prompt tells who respects them.

A window of 4,096 tokens changes nothing in a prompt of twenty. Some families tell attention of it,
some have it in their masks alone, and some configs name one that nobody reads.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

NARROW = 7
"""Tokens; fewer than a test prompt has."""

NAMES: Final = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_chunk_size",
    "floor_scale",
)
"""What transformers calls the size of a window, of a chunk, and of the steps in which Llama 4's
queries grow.
"""


@contextmanager
def narrow_windows(model: PreTrainedModel) -> Iterator[None]:
    """Windows and chunks of `model` are at most `NARROW` tokens inside this context, but for those
    that no row can outgrow. Nothing else may run the model.
    """
    config = model.config.get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    sizes = (_size(config, name) for name in NAMES)
    wide = {size for size in sizes if size is not None and NARROW < size < longest}
    changed: list[tuple[object, str, int]] = []
    for holder in _holders(model):
        for name in NAMES:
            size = _size(holder, name)
            # some modules keep the config's window and one more
            near = next((each for each in wide if size is not None and 0 <= size - each <= 1), None)
            if size is not None and near is not None:
                changed.append((holder, name, size))
                setattr(holder, name, size - near + NARROW)
    try:
        yield
    finally:
        for holder, name, size in changed:
            setattr(holder, name, size)


def _holders(model: PreTrainedModel) -> list[object]:
    """The modules of `model` and their configs, each once."""
    modules: list[nn.Module] = list(model.modules())
    configs = {
        id(value): value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, PreTrainedConfig)
    }
    return [*modules, *configs.values()]


def _size(holder: object, name: str) -> int | None:
    """The size `name` that an object has of its own; floats are sizes too, Llama 4's is one."""
    size = vars(holder).get(name)
    return int(size) if isinstance(size, int | float) and not isinstance(size, bool) else None
