"""Task arithmetic: the base plus a weighted sum of deltas."""

import math
from collections.abc import Sequence
from typing import Annotated

from merging.methods.method import Combination, Doc, method


@method("task_arithmetic", title="Task arithmetic", paper="https://arxiv.org/abs/2212.04089")
def task_arithmetic(
    weight: Annotated[Sequence[float], Doc("Factor on the source's delta; negative negates it.")],
    density: Annotated[
        Sequence[float],
        Doc("No effect here: every delta is kept whole.", 0.0, 1.0, default=1.0, inert=True),
    ],
    *,
    lambda_: Annotated[float, Doc("Factor on the sum of all deltas.")] = 1.0,
    normalize: Annotated[bool, Doc("Divide the sum of deltas by the sum of weights.")] = False,
) -> Combination:
    """Base plus the weighted sum of deltas, `W0 + lambda * sum_i w_i tau_i` (section 2).

    With `normalize` the sum is divided by `sum w`, unless that is below 1e-8 in absolute value, as
    in mergekit. `density` is accepted, as in mergekit, so that switching to a method that trims
    deltas and back keeps it.
    """
    total = math.fsum(weight) if normalize else 1.0
    factor = lambda_ / (total if abs(total) >= 1e-8 else 1.0)
    return Combination(tuple(factor * w for w in weight))
