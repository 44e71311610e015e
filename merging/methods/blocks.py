"""Tensors block by block, for methods that see whole ones."""

from typing import Final

import torch

BLOCK: Final = 1 << 18
"""Elements that are looked at together: what is made of them stays in the cores' cache, and no
second tensor as large as the first is needed.
"""


def blocks_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Flat views of a contiguous tensor, in order; of one without elements, one without any."""
    return torch.split(tensor.reshape(-1), BLOCK)
