"""A blend: a recipe compiled to coefficients per (adapter, module). No weights are written."""

from dataclasses import dataclass

import torch

from merging.adapter import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """A linear combination of adapters, `W0 + sum_i c_i s_i B_i A_i`, with a `c` per module.

    `coefficients`: float32 [num_adapters, num_modules]; columns are in the order of `Base.linears`.
    They hold the recipe's weights only; an adapter's own scale (alpha / r) stays in its `LowRank`.
    `base_scales`: float32 [num_modules], factors on each `W0`; None if all are 1.
    `digest` identifies the weights: equal digests mean equal weights.
    """

    digest: str
    adapters: tuple[Adapter, ...]
    coefficients: torch.Tensor
    base_scales: torch.Tensor | None = None
