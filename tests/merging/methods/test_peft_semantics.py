"""Semantics `peft` gives what PEFT's own functions give on the same tensors."""

import pytest
import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge
from peft.utils.merge_utils import ties as peft_ties

from merging.methods.random import Random
from tests.merging.methods.one_tensor import merge

WEIGHTS = (0.7, -0.2, 0.5)
DELTAS = [torch.randn(12, 17, generator=torch.Generator().manual_seed(i)) for i in range(3)]
ZERO = torch.zeros(12, 17)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ties_is_pefts(density: float, count: int) -> None:
    """Trim, elect by unweighted deltas, weigh, and divide by the number that agrees."""
    deltas, weight = DELTAS[:count], WEIGHTS[:count]
    wanted = peft_ties(list(deltas), torch.tensor(weight), density)
    result = merge(
        "ties", ZERO, deltas, weight=weight, density=(density,) * count, semantics="peft"
    )
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)


def test_dare_ties_is_pefts_on_the_same_masks() -> None:
    """Divide by the density, elect by unweighted deltas, weigh, and divide by the number."""
    density, weight = 0.4, torch.tensor(WEIGHTS)
    masks = [Random(0, f"{i:02}", "layer.weight").keep(density, ZERO.shape) for i in range(3)]
    pruned = torch.stack([d * m / density for d, m in zip(DELTAS, masks, strict=True)])
    majority = calculate_majority_sign_mask(pruned, method="total")
    wanted = disjoint_merge(pruned * weight[:, None, None], majority)
    result = merge(
        "dare_ties", ZERO, DELTAS, weight=WEIGHTS, density=(density,) * 3, semantics="peft"
    )
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)


def test_dare_linear_is_pefts_on_the_same_masks() -> None:
    """Divide by the density, and sum."""
    masks = [Random(0, f"{i:02}", "layer.weight").keep(0.4, ZERO.shape) for i in range(3)]
    wanted = sum(w * d * m / 0.4 for w, d, m in zip(WEIGHTS, DELTAS, masks, strict=True))
    result = merge(
        "dare_linear", ZERO, DELTAS, weight=WEIGHTS, density=(0.4,) * 3, semantics="peft"
    )
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)
