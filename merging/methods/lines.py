"""LiNeS: task arithmetic that grows with the depth of the layer."""

from typing import Annotated

from merging.methods.combination import Combination
from merging.methods.method import method
from merging.methods.parameter import Doc
from merging.methods.task_vectors import WeightOfDelta


@method("lines", title="LiNeS", paper="https://arxiv.org/abs/2410.17146")
def lines(
    weight: WeightOfDelta,
    *,
    alpha: Annotated[float, Doc("Factor on deltas of the first layer and outside the layers.")],
    beta: Annotated[float, Doc("What the factor has gained at the last layer.")],
    depth: Annotated[
        float, Doc("Where a layer stands, from 0 to 1.", 0.0, 1.0, gradient=(0.0, 1.0))
    ],
) -> Combination:
    """Layer-increasing scaling, `W0 + (alpha + beta * l / (L - 1)) * sum_i w_i tau_i` for layer l
    of L, counted from 0: shallow layers keep more of the base. Embeddings, final norm and head
    have the factor alpha.
    """
    factor = alpha + beta * depth
    return Combination(tuple(factor * w for w in weight))
