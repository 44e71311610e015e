"""Task arithmetic: the base plus a weighted sum of deltas."""

import math

from merging.methods.combination import Combination
from merging.methods.consensus import SMALL_SUM
from merging.methods.method import method
from merging.methods.task_vectors import (
    Int8Mask,
    Lambda,
    Normalize,
    UnusedDensity,
    UnusedRescale,
    WeightOfDelta,
)


@method("task_arithmetic", title="Task arithmetic", paper="https://arxiv.org/abs/2212.04089")
def task_arithmetic(
    weight: WeightOfDelta,
    density: UnusedDensity,
    *,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: UnusedRescale = False,
    int8_mask: Int8Mask = False,
) -> Combination:
    """Base plus the weighted sum of deltas, `W0 + lambda * sum_i w_i tau_i` (section 2).

    With `normalize` the sum is divided by `sum w`, unless that is below 1e-8 in absolute value, as
    in mergekit. `density` and `rescale` are accepted, as in mergekit, so that switching to a method
    that trims deltas and back keeps them.
    """
    total = math.fsum(weight) if normalize else 1.0
    factor = lambda_ / (total if abs(total) >= SMALL_SUM else 1.0)
    return Combination(tuple(factor * w for w in weight))
