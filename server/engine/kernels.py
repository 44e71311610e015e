"""How one linear layer's base product is computed on a device. Everything else treats a kernel as a
function.

A kernel takes `x` [tokens, in] and a bias [out] or None, and returns `W0 x + b`, [tokens, out].
It keeps nothing of a call, so any number of models and threads may share one. Whatever is faster
on some processor is added here.
"""

from typing import Protocol

import torch
from torch.nn.functional import linear

PACKED_FOR_TOKENS = 16
"""The number of rows for which oneDNN is asked to choose its layout; it works for any number."""


class Kernel(Protocol):
    """The product with one weight."""

    @property
    def weight(self) -> torch.Tensor:
        """The weight, [out, in]; maybe made for the occasion."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`W0 x + b`."""


class PlainKernel:
    """torch's own product over the row-major weight [out, in], of which it makes no copy."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    @property
    def weight(self) -> torch.Tensor:
        """The row-major weight itself."""
        return self._weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(x, self._weight, bias)


class PackedKernel:
    """oneDNN's product over a weight in its blocked layout: reads memory faster than the row-major
    one for few rows.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        weight = weight.contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_TOKENS)
        self._product = torch.ops.mkldnn._linear_pointwise

    @property
    def weight(self) -> torch.Tensor:
        """The row-major weight, a copy."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = self._product(x, self._packed, bias, "none", [], "")
        return y


def choose_kernel(weight: torch.Tensor) -> Kernel:
    """The fastest known kernel for `weight` [out, in], which the kernel then owns."""
    return PackedKernel(weight) if can_pack(weight) else PlainKernel(weight)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether the processor has a faster layout than the plain one for `weight`."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
