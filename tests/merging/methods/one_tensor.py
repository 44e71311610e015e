"""Merge one tensor in a test, with a method's defaults for what is not given."""

from collections.abc import Mapping, Sequence

import torch

from merging.methods import METHODS
from merging.methods.apply import merge_tensor
from merging.methods.method import Method
from merging.setting import Scalar

Values = dict[str, Scalar | tuple[Scalar, ...]]

REQUIRED: Mapping[str, float] = {"t": 0.3, "alpha": 0.5, "beta": 0.5, "depth": 0.5, "weight": 1.0}
"""A value for parameters without a default."""


def values_of(method: Method, count: int, **given: object) -> Values:
    """Values for `count` sources; those given replace defaults, `lambda_` is lambda."""
    values: Values = {}
    for parameter in method.parameters:
        default = REQUIRED[parameter.name] if parameter.default is None else parameter.default
        values[parameter.name] = (default,) * count if parameter.scope == "source" else default
    return values | {name.rstrip("_"): value for name, value in given.items()}  # type: ignore[dict-item]


def merge(
    name: str,
    base: Sequence[object] | torch.Tensor | None,
    sources: Sequence[Sequence[object] | torch.Tensor],
    *,
    seed: int = 0,
    digests: Sequence[str] | None = None,
    **given: object,
) -> torch.Tensor:
    """Merge whole tensors by the method of this name."""
    method = METHODS[name]
    start = None if base is None else torch.as_tensor(base, dtype=torch.float32)
    tensors = [torch.as_tensor(source, dtype=torch.float32) for source in sources]
    return merge_tensor(
        method,
        values_of(method, len(sources), **given),
        start,
        tensors if start is None else [tensor - start for tensor in tensors],
        seed=seed,
        digests=[f"{i:02}" for i in range(len(sources))] if digests is None else digests,
        tensor_name="layer.weight",
    )
