"""Core Space: merge adapters in the small space that their factors share."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

from merging.adapter import LowRank
from merging.methods.apply import canonical_order, merge_tensor, reordered
from merging.methods.core_basis import Bases
from merging.methods.dare_linear import dare_linear
from merging.methods.dare_ties import dare_ties
from merging.methods.method import Method, Values, method
from merging.methods.parameter import Doc
from merging.methods.task_arithmetic import task_arithmetic
from merging.methods.task_vectors import Density, Lambda, NormalizeAgreeing, WeightOfDelta
from merging.methods.ties import ties

Inside = Literal["task_arithmetic", "ties", "dare_linear", "dare_ties"]
INSIDE = {m.name: m for m in (task_arithmetic, ties, dare_linear, dare_ties)}


@method(
    "core_space",
    title="Core Space",
    paper="https://arxiv.org/abs/2509.17786",
    kind="low_rank",
    is_random=True,
)
def core_space(
    factors: Sequence[LowRank],
    bases: Bases,
    seed: int,
    digests: Sequence[str],
    tensor_name: str,
    weight: WeightOfDelta,
    density: Density,
    *,
    inside: Annotated[Inside, Doc("The method that merges in the shared space.")] = "ties",
    normalize: NormalizeAgreeing = False,
    lambda_: Lambda = 1.0,
) -> LowRank:
    """Merge adapters in the space of their stacked factors (2509.17786): `M_i = U^T B_i A_i V` are
    merged by another method, and `U M V^T` is added to the base.

    U and V are singular vectors of all B and all A, so nothing is lost on the way in. With task
    arithmetic inside it is task arithmetic; TIES and DARE work on a few thousand numbers for each
    module, whatever its size. What else these methods have is at their defaults. The result is one
    adapter, which has at most the sum of the ranks.
    """
    sources: Values = {"weight": tuple(weight), "density": tuple(density)}
    order = canonical_order(sources, digests)
    factors, digests = [factors[i] for i in order], [digests[i] for i in order]
    basis = bases(factors, digests, tensor_name)
    inner = INSIDE[inside]
    merged = merge_tensor(
        inner,
        {**_inner_values(inner, normalize, lambda_), **reordered(sources, order)},
        torch.zeros_like(basis.cores[0]),
        basis.cores,
        seed=seed,
        digests=digests,
        tensor_name=tensor_name,
    )
    return basis.expand(merged, factors)


def _inner_values(inner: Method, normalize: bool, factor: float) -> Values:
    """The recipe's values; all others are at their defaults."""
    defaults = {p.name: p.default for p in inner.parameters if p.default is not None}
    return {**defaults, "normalize": normalize, "lambda": factor}
