"""NearSwap: the source where it is near the base, else the base moved towards it."""

from typing import Annotated

import torch

from merging.methods.method import method
from merging.methods.parameter import Doc

SMALL_DIFFERENCE = 1e-6


@method(
    "nearswap",
    title="NearSwap",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    kind="elementwise",
    pointwise=True,
    max_sources=1,
)
def nearswap(
    base: torch.Tensor,
    deltas: tuple[torch.Tensor, ...],
    *,
    t: Annotated[float, Doc("How far an element may move; nearer ones are taken over.")],
) -> torch.Tensor:
    """Move each element of the base by `t` at most, towards the source:
    `W0 + clamp(t / max(|tau|, 1e-6), 0, 1) * tau`.
    """
    delta = deltas[0]
    return (t / delta.abs().clamp_(min=SMALL_DIFFERENCE)).clamp_(0, 1).mul_(delta)
