"""Rules: the logits of an ensemble's members in, the logits of one distribution out.

Pure functions on `[members, ..., vocab]`, float32 (float64 works too). What they return is on the
scale of the members' own logits, not normalised: equal members give that member's logits, so that a
repetition penalty, which looks at signs, acts as it does on one model. A member of coefficient zero
is never looked at. A token that a member rules out with -inf is ruled out by every rule that adds
logits, whatever the member's sign; `linear_pool` keeps a token that one member keeps.
"""

import math
from collections.abc import Sequence

import torch

from ensemble.errors import RuleError

NEGLIGIBLE = 1e-9
"""A coefficient below this share of all is what rounding left of zero: with logits up to a hundred
it is below their float32 rounding."""


def task_arithmetic(logits: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """The base's logits plus weighted differences, `z0 + sum_i lambda_i (z_i - z0)`.

    The twin of a task-vector merge: to first order in the deltas, the logits of
    `W0 + sum_i lambda_i tau_i`. It is the form of DExperts (arXiv:2105.03023, section 2) and of
    proxy-tuning (arXiv:2401.08565, section 2) with the base as the anti-expert, and of
    classifier-free guidance (arXiv:2306.17806) with the unconditional prompt as the base.

    `logits`: [1 + members, ..., vocab], the base first; `coefficients`: one lambda per member, of
    any sign and sum. All zero gives the base's logits, (1, 0, ...) the first member's, to the bit.
    """
    return affine(logits, (base_coefficient(coefficients), *coefficients))


def log_pool(logits: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The weighted geometric mean of the members, `p ∝ prod_i p_i^(w_i)`, so `sum_i w_i z_i`.

    The logarithmic opinion pool (Genest and Zidek 1986), a product of experts (Hinton
    2002, equation 1) whose exponents sum to 1, so that it is no sharper than its members. Constants
    added to a member's logits cancel, so log-probabilities do as well as logits, and dividing by a
    temperature before or after is the same. Each member can veto a token.

    `logits`: [members, ..., vocab]; `weights`: one per member, divided here by their sum, which
    must be positive; a weight may be negative.
    """
    return affine(logits, shares(weights))


def linear_pool(
    logits: torch.Tensor, weights: Sequence[float], temperature: float = 1.0
) -> torch.Tensor:
    """The weighted arithmetic mean of the members' probabilities, `p = sum_i w_i p_i`.

    The linear opinion pool (Stone 1961; Genest and Zidek 1986), which LoRA ensembles use
    (arXiv:2310.00035). It keeps every token that one member likes.

    With a `temperature` T other than 1 the members are tempered before they are averaged: returned
    are logits z with `softmax(z / T) = sum_i w_i softmax(z_i / T)`, for a sampler that divides by T
    afterwards. `logits`: [members, ..., vocab]; `weights`: one per member, none negative, divided
    here by their sum. Nothing underflows: a token's share may be far below the smallest float32.
    """
    portions = shares(weights)
    if negative := [weight for weight in portions if weight < 0]:
        raise RuleError(f"linear_pool takes no negative weights, got {negative[0]:g}")
    used = [index for index, portion in enumerate(portions) if portion != 0]
    if len(used) == 1:
        return logits[used[0]]
    scaled = logits[used] / temperature
    normalisers = scaled.logsumexp(dim=-1, keepdim=True)  # [used, ..., 1]
    # Both relative to their largest: of equal members only log sum w = 0 is left to round.
    normalisers -= normalisers.amax(dim=0)
    largest = scaled.amax(dim=0).clamp_min(torch.finfo(scaled.dtype).min)  # [..., vocab]
    logs = scaled.new_tensor([math.log(portions[index]) for index in used])
    logs = logs.view(-1, *(1,) * (logits.dim() - 1))
    parts = (scaled - largest).add_(logs - normalisers)
    return (parts.logsumexp(dim=0) + largest) * temperature


def plausible(logits: torch.Tensor, coefficients: Sequence[float], alpha: float) -> torch.Tensor:
    """Tokens that are at least `alpha` times as likely as the most likely one, bool [..., vocab].

    Contrastive decoding's adaptive plausibility constraint, `p(v) >= alpha max_w p(w)`
    (arXiv:2210.15097, section 3), without which a negative coefficient lifts tokens that no member
    would write. Its expert is here the log pool of the members with positive coefficients.

    `logits`: [members, ..., vocab]; `coefficients`: one per member; `alpha` in (0, 1].
    """
    experts = affine(logits, shares([max(coefficient, 0.0) for coefficient in coefficients]))
    return experts >= experts.amax(dim=-1, keepdim=True) + math.log(alpha)


def affine(logits: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """`sum_i c_i z_i` for coefficients that sum to 1: [members, ..., vocab] -> [..., vocab].

    Summed as `z_a + sum_i c_i (z_i - z_a)` around the member with the largest coefficient, so that
    equal members, and a member alone, come out to the bit.
    """
    assert len(logits) == len(coefficients), (logits.shape, coefficients)
    used = [index for index, coefficient in enumerate(coefficients) if coefficient != 0]
    anchor = max(used, key=lambda index: abs(coefficients[index]))
    if len(used) == 1:
        return logits[anchor]
    combined = logits[anchor].clone()
    for index in used:
        if index != anchor:
            combined.add_(logits[index] - logits[anchor], alpha=coefficients[index])
    for index in used:  # -inf minus -inf is NaN, and a negative coefficient makes +inf of -inf
        if bool(logits[index].amin().isneginf()):
            combined.masked_fill_(logits[index].isneginf(), -math.inf)
    return combined


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by their sum. Raises RuleError unless they are finite and sum to more than 0.

    A sum that only rounding keeps from zero counts as zero.
    """
    if not all(math.isfinite(weight) for weight in weights):
        raise RuleError(f"weights must be finite, got {list(weights)}")
    total = math.fsum(weights)
    if total <= NEGLIGIBLE * math.fsum(abs(weight) for weight in weights):
        raise RuleError(f"the weights {list(weights)} must sum to more than 0, got {total:g}")
    return tuple(weight / total for weight in weights)


def base_coefficient(coefficients: Sequence[float]) -> float:
    """`1 - sum_i lambda_i`, the coefficient of the base in task arithmetic.

    Exactly 0 where only rounding kept it from that: the base need not be computed then.
    """
    rest = math.fsum((1.0, *(-coefficient for coefficient in coefficients)))
    scale = math.fsum((1.0, *(abs(coefficient) for coefficient in coefficients)))
    return 0.0 if abs(rest) <= NEGLIGIBLE * scale else rest
