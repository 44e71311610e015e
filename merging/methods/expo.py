"""ExPO: more of what alignment changed."""

from typing import Annotated

from merging.methods.combination import Combination
from merging.methods.method import method
from merging.methods.parameter import Doc


@method("expo", title="ExPO", paper="https://arxiv.org/abs/2404.16792", max_sources=1)
def expo(
    *,
    alpha: Annotated[float, Doc("How far beyond the source, in lengths of its delta.")],
) -> Combination:
    """Model extrapolation, `x + alpha * (x - W0)`: the source is the aligned model, the base the
    one that it was aligned from.
    """
    return Combination((1.0 + alpha,))
