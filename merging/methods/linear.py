"""Linear: the weighted mean of models."""

import math
from collections.abc import Sequence
from typing import Annotated

from merging.errors import PlanError
from merging.methods.combination import Combination
from merging.methods.method import method
from merging.methods.parameter import Doc


@method("linear", title="Linear", paper="https://arxiv.org/abs/2203.05482", base="input")
def linear(
    weight: Annotated[Sequence[float], Doc("Share of the source in the mean.")],
    *,
    normalize: Annotated[bool, Doc("Divide by the sum of the weights.")] = True,
) -> Combination:
    """Weighted mean of the sources, `sum_i w_i x_i / sum_i w_i` (Model soups, section 2).

    With `x_i = W0 + tau_i` that is `W0 + sum_i (w_i / sum w) tau_i`; without `normalize` it is
    `(sum w) W0 + sum_i w_i tau_i`.
    """
    total = math.fsum(weight)  # exact, so the order of sources cannot matter
    if not normalize:
        return Combination(tuple(weight), base_scale=total)
    if abs(total) <= 1e-8 * math.fsum(abs(w) for w in weight):
        raise PlanError(f"the weights {list(weight)} sum to 0 and cannot be normalized")
    return Combination(tuple(w / total for w in weight))
