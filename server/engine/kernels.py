"""How one linear layer's base product is computed on a device. Everything else treats a kernel as a
function.

A kernel takes `x` [tokens, in] and returns `W0 x + b`, [tokens, out]. Whatever is faster on some
processor is added here.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import linear

Kernel = Callable[[torch.Tensor], torch.Tensor]


def choose_kernel(weight: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """The fastest known kernel for `weight` [out, in], which the kernel then owns."""
    if _can_pack(weight):
        return packed_kernel(weight, bias)
    return plain_kernel(weight, bias)


def plain_kernel(weight: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """torch's own product over the row-major weight."""
    return lambda x: linear(x, weight, bias)


def packed_kernel(weight: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """oneDNN's product over a weight in its blocked layout: reads memory faster than the row-major
    one for few rows.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_TOKENS)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


PACKED_FOR_TOKENS = 16
"""The number of rows for which oneDNN is asked to choose its layout; it works for any number."""


def _can_pack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
