"""A blend written into weights: what a checkpoint of it holds."""

import torch

from merging.base import Base
from merging.blend import Blend


def blended_modules(blend: Blend, base: Base) -> list[str]:
    """The modules whose weights a blend changes, in the base's order."""
    return [module for module in base.linears if _changes(blend, base, module)]


def _changes(blend: Blend, base: Base, module: str) -> bool:
    column = base.module_index[module]
    if blend.base_scales is not None and blend.base_scales[column] != 1:
        return True
    rows = zip(blend.adapters, blend.coefficients, strict=True)
    return any(module in adapter.factors and row[column] != 0 for adapter, row in rows)


def dense_weight(blend: Blend, base: Base, module: str, weight: torch.Tensor) -> torch.Tensor:
    """`scale * W0 + sum_i c_i s_i B_i A_i` of one module, float32, in the shape of its weight
    `W0`, which is [out, in], or [in, out] where the base keeps it so.
    """
    column = base.module_index[module]
    merged = weight.float()
    if blend.base_scales is not None:
        merged = merged * blend.base_scales[column]
    for adapter, row in zip(blend.adapters, blend.coefficients, strict=True):
        coefficient = float(row[column])
        if module in adapter.factors and coefficient:
            factor = adapter.factors[module]
            scaled = (coefficient * factor.scale) * factor.b.float()
            delta = scaled @ factor.a.float()
            merged = merged + (delta.T if base.linears[module].transposed else delta)
    return merged
