"""Whether a planned merge is one weighted sum of whole models: the same shares in every tensor."""

from collections.abc import Mapping
from math import fsum
from typing import Final

from merging.adapter import Adapter
from merging.adapter_weights import StackedWeights
from merging.base import locate
from merging.models import Source
from merging.plan import Plan
from merging.recipe import BASE
from merging.shares import shares
from merging.variant import TensorPlan, VariantPlan

TOLERANCE: Final = 1e-6


def is_weighted_sum(plan: Plan) -> bool:
    """Whether every tensor of the merge is `W0 + sum_i c_i (W_i - W0)`, with one coefficient for
    each source wherever that differs from the base W0: `Plan.members` then has them.
    """
    if plan.low_rank is not None:
        return False
    if plan.variant is not None:
        return _is_sum(plan.variant, plan)
    groups = (source.groups for source in plan.explain().sources)
    one_each = all(len({group.coefficient for group in own}) <= 1 for own in groups)
    return plan.blend.base_scales is None and one_each


def _is_sum(variant: VariantPlan, plan: Plan) -> bool:
    own_layers = variant.layers == tuple(range(plan.base.num_layers))
    if variant.method.kind != "linear" or isinstance(variant.base, StackedWeights):
        return False
    if not own_layers or any(name != tensor for name, tensor in variant.shared.items()):
        return False
    found: dict[str, list[float]] = {}
    for tensor in variant.tensors:
        coefficients = _coefficients(tensor, variant)
        if coefficients is None:
            return False
        for name in _changing(plan.sources, tensor.name):
            found.setdefault(name, []).append(coefficients.get(name, 0.0))
    for name in variant.shared:
        for source in _changing(plan.sources, name):
            found.setdefault(source, []).append(0.0)
    return all(max(values) - min(values) <= TOLERANCE for values in found.values())


def _coefficients(tensor: TensorPlan, variant: VariantPlan) -> Mapping[str, float] | None:
    """What each source counts for in a tensor, the base_model's aside; None if the tensor is made
    of others than its own, or if the shares do not add up to one whole model.
    """
    tensors = [part.tensor for part in tensor.ingredients]
    tensors += [] if tensor.base is None else [tensor.base]
    if locate(tensor.name) is not None and set(tensors) - {tensor.name}:
        return None
    combination = variant.method.combine(tensor.values)
    values = shares(variant.method, tensor.values)
    names = [part.source for part in tensor.ingredients]
    # Without a base the sources are whole tensors, and its scale does not count.
    whole = fsum(values) if tensor.base is None else float(combination.base_scale)
    if abs(whole - 1) > TOLERANCE:
        return None
    return dict(zip(names, values, strict=True))


def _changing(sources: Mapping[str, Source], tensor: str) -> list[str]:
    """The sources whose tensor may be another than the base's. The base_model of others may be
    among them: it has no coefficient anywhere, which is one.
    """
    module = tensor.removesuffix(".weight")
    return [
        name
        for name, source in sources.items()
        if name != BASE and (not isinstance(source, Adapter) or module in source.factors)
    ]
