"""Passthrough: one source as it is."""

from collections.abc import Sequence
from typing import Annotated

from merging.methods.combination import Combination
from merging.methods.method import method
from merging.methods.parameter import Doc


@method(
    "passthrough",
    title="Passthrough",
    paper="https://arxiv.org/abs/2312.15166",
    base="input",
    max_sources=1,
)
def passthrough(
    scale: Annotated[Sequence[float], Doc("Factor on the source's tensors.", default=1.0)],
) -> Combination:
    """The source itself, `scale * x`. With slices it stacks layers of several models (depth
    up-scaling, 2312.15166).
    """
    return Combination(tuple(scale), base_scale=scale[0])
