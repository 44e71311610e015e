"""What merging needs of a source, adapter or checkpoint alike: its content, as deltas by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from merging.adapter import Adapter
from merging.base import Base

Kind = Literal["adapter", "checkpoint"]


class Weights(Protocol):
    """The tensors of a full model, by name. Reading never writes to the files behind them."""

    @property
    def digest(self) -> str:
        """Digest of the content of all tensors."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by its name, in the model's own order; a tied head is left
        out.
        """

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in its own dtype, read-only: a view of the mapped file where that is possible.

        Raises SourceError if the file changed since it was opened.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A low-rank delta in the shape of its tensor, `left @ right`, the scale included.

    `left`: float32 [rows, rank]; `right`: float32 [rank, columns].
    """

    left: torch.Tensor
    right: torch.Tensor


class DeltaSource(Protocol):
    """A source: a full model `weights`, plus low-rank products on some of its tensors.

    An adapter has no weights of its own, only products on the resident base's. A checkpoint has no
    products.
    """

    @property
    def kind(self) -> Kind:
        """Adapter or checkpoint."""

    @property
    def digest(self) -> str:
        """Digest of the source's content."""

    @property
    def weights(self) -> Weights | None:
        """The full model that the products are added to; None for the resident base."""

    def touches(self, name: str) -> bool:
        """Whether the source may differ from the base in the tensor `name`."""

    def product(self, name: str) -> Product | None:
        """What is added to the tensor `name` of `weights`; None for nothing."""

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """What the source adds to its tensor `name`: float32, in the shape of `base`, which is that
        tensor of the base (for an adapter, of the resident base).
        """


@dataclass(frozen=True)
class AdapterDeltas:
    """An adapter as deltas `scale * B @ A`, transposed where the base keeps weights so."""

    adapter: Adapter
    base: Base
    kind: Kind = "adapter"

    @property
    def digest(self) -> str:
        return self.adapter.digest

    @property
    def weights(self) -> Weights | None:
        return None

    def touches(self, name: str) -> bool:
        return name.endswith(".weight") and name.removesuffix(".weight") in self.adapter.factors

    def product(self, name: str) -> Product | None:
        if not self.touches(name):
            return None
        module = name.removesuffix(".weight")
        factor = self.adapter.factors[module]
        left, right = factor.scale * factor.b.float(), factor.a.float()
        if self.base.linears[module].transposed:
            left, right = right.T.contiguous(), left.T.contiguous()
        return Product(left, right)

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor:
        product = self.product(name)
        return torch.zeros(base.shape) if product is None else product.left @ product.right


@dataclass(frozen=True)
class CheckpointDeltas:
    """A checkpoint as deltas, `x - W0` in float32. The base itself is one too, of deltas zero.

    `changed`: the tensors that alone may differ from the base's; None for all.
    """

    weights: Weights
    changed: frozenset[str] | None = None
    kind: Kind = "checkpoint"

    @property
    def digest(self) -> str:
        return self.weights.digest

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.weights.shapes) if self.changed is None else self.changed

    def touches(self, name: str) -> bool:
        return name in self._names

    def product(self, name: str) -> Product | None:
        return None

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor:
        return self.weights.tensor(name).float() - base.float()
