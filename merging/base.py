"""What merging must know of the resident base: its linear layers, and its content's digest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from merging.naming import Naming, as_in_files

LAYER = re.compile(r"(?:^|\.)([0-9]+)(?:\.|$)")

TOWER = re.compile(r"(?:^|\.)[^.]*(?:vision|visual|audio|image)[^.]*(?:\.|$)")
"""Parts of the names of what stands beside the language model: its layers are other ones."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Shape of one linear layer; `transposed` if its weight is kept [in, out] (GPT-2's Conv1D)."""

    out_features: int
    in_features: int
    transposed: bool = False


@dataclass(frozen=True)
class Base:
    """The resident base as the merging code sees it.

    `linears` maps module paths (`model.layers.0.self_attn.q_proj`) to shapes, in the model's own
    order. That order is the column order of every blend's coefficients. `ties` maps the name of a
    head's tensor to that of the embedding that it is. `naming` turns the names in files of this
    model into those that are used here.
    """

    name: str
    digest: str
    dtype: str
    num_layers: int
    linears: Mapping[str, Linear]
    ties: Mapping[str, str] = field(default_factory=dict)
    naming: Naming = field(default=as_in_files, compare=False, repr=False)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.ties)

    @cached_property
    def module_index(self) -> Mapping[str, int]:
        """Column of each module in a blend's coefficients."""
        return {name: index for index, name in enumerate(self.linears)}


def split_layer(module: str) -> tuple[int | None, str]:
    """Split a module path into its layer and its kind.

    `model.layers.3.self_attn.q_proj` is (3, "self_attn.q_proj"); `lm_head` is (None, "lm_head").
    """
    place = locate(module)
    return (None, module) if place is None else (place.layer, place.kind)


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """A name inside the layers: `model.layers.3.mlp` is ("model.layers", 3, "mlp")."""

    root: str
    layer: int
    kind: str

    def at(self, layer: int) -> str:
        """The name of the same place in another layer."""
        return f"{self.root}.{layer}.{self.kind}"


@lru_cache(maxsize=1 << 16)  # every plan asks it of every tensor
def locate(name: str) -> LayerPlace | None:
    """Where in the language model's layers a module or tensor lies; None outside of them."""
    if TOWER.search(name):
        return None
    # The first number is the layer: in `layers.3.mlp.experts.5.up_proj` it is 3.
    found = LAYER.search(name)
    if found is None:
        return None
    return LayerPlace(name[: found.start()].rstrip("."), int(found[1]), name[found.end() :])
