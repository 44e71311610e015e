"""A variant, planned: for every tensor of the merged model, what it is made of. No weights yet."""

from collections.abc import Mapping
from dataclasses import dataclass

from merging.methods.method import Method
from merging.setting import Scalar
from merging.source import DeltaSource, Weights


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One source's share of a tensor: the tensor `tensor` of the source `source` (a key of
    `VariantPlan.sources`).
    """

    source: str
    tensor: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the merged model that is not the resident base's own.

    `base`: the tensor of `VariantPlan.base` that deltas are relative to; None if the method works
    on whole tensors without a base. `values`: the method's parameters, as `Method` takes them: a
    tuple with a value for each ingredient, in their order, or a scalar.
    """

    name: str
    shape: tuple[int, ...]
    base: str | None
    ingredients: tuple[Ingredient, ...]
    values: Mapping[str, Scalar | tuple[Scalar, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class VariantPlan:
    """How to build the weights of a recipe.

    `tensors` are to be merged; `shared` maps the names of all others to the resident base's tensor
    that they are. `layers`: for each layer of the merged model the layer of the resident base that
    it is built like (its own number, unless layers are stacked). `resident` is the base that is
    served, `base` the one that deltas are relative to: usually the same. `dtype` is that of the
    result. `num_bytes` is what `tensors` take in that dtype.
    """

    digest: str
    method: Method
    resident: Weights
    base: Weights
    sources: Mapping[str, DeltaSource]
    tensors: tuple[TensorPlan, ...]
    shared: Mapping[str, str]
    layers: tuple[int, ...]
    dtype: str
    seed: int
    num_bytes: int

    def touching(self, tensor: TensorPlan) -> list[tuple[int, str]]:
        """The sources that are seen in a tensor, with their places among its ingredients."""
        return [
            (index, part.source)
            for index, part in enumerate(tensor.ingredients)
            if tensor.base is None or self.sources[part.source].touches(part.tensor)
        ]
