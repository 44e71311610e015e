"""Merge one tensor by any method, with all of it in memory: what every faster way must equal."""

from collections.abc import Sequence

import torch

from merging.methods.combination import Coefficient
from merging.methods.method import Method, Values
from merging.methods.random import Random
from merging.methods.trim import Threshold
from merging.methods.vectors import gram_of, spread


def merge_tensor(
    method: Method,
    values: Values,
    base: torch.Tensor | None,
    deltas: Sequence[torch.Tensor],
    *,
    seed: int,
    digests: Sequence[str],
    tensor_name: str,
    thresholds: Sequence[Threshold | None] | None = None,
) -> torch.Tensor:
    """The merged tensor, float32 in the shape of the deltas.

    `base` and `deltas` are float32 of one shape; without a base, deltas are the sources' own
    tensors. `values` has a tuple entry, `digests` the digest and `thresholds` the result of
    `Trim.counts` (for `scope: model`) for each delta. Sources are taken in the order of their
    digests, so the order that they come in does not matter.

    Raises PlanError if the values have no result.
    """
    order = canonical_order(values, digests)
    values = reordered(values, order)
    deltas = [deltas[i] for i in order]
    if method.kind != "elementwise":
        return _combine(method, values, base, deltas)
    assert base is not None, f"{method.name} needs a base"
    if method.trim is not None:
        for place, i in enumerate(order):
            trimmed = method.trim(
                deltas[place],
                random=Random(seed, digests[i], tensor_name),
                threshold=thresholds[i] if thresholds is not None else None,
                **method.trim_values(values, place),
            )
            deltas[place] = deltas[place] * trimmed.kept * trimmed.scale
    else:  # the method may write over them, and they are the caller's
        deltas = [delta.clone() for delta in deltas]
    return base + method.merge_deltas(base, tuple(deltas), values)


def canonical_order(values: Values, digests: Sequence[str]) -> list[int]:
    """The indices of sources in the order in which they are summed: by digest, then by values."""
    own = [v for _, v in sorted(values.items()) if isinstance(v, tuple)]
    return sorted(range(len(digests)), key=lambda i: (digests[i], [v[i] for v in own]))


def reordered(values: Values, order: Sequence[int]) -> Values:
    """The values with those of sources in another order."""
    return {
        name: tuple(value[i] for i in order) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _combine(
    method: Method,
    values: Values,
    base: torch.Tensor | None,
    deltas: Sequence[torch.Tensor],
) -> torch.Tensor:
    shape, vectors = deltas[0].shape, method.vectors(values)
    if method.kind == "linear":
        combination = method.combine(values)
    else:
        combination = method.combine_gram(gram_of(base, deltas, vectors), values)
    merged = torch.zeros(shape)
    shares: list[tuple[torch.Tensor, Coefficient]] = list(
        zip(deltas, combination.coefficients, strict=True)
    )
    if base is not None:
        shares.insert(0, (base, combination.base_scale))
    for tensor, coefficient in shares:
        merged += tensor * spread(coefficient, shape, vectors)
    return merged
