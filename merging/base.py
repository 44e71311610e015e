"""What merging must know of the resident base: its linear layers, and its content's digest."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


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
    order. That order is the column order of every blend's coefficients.
    """

    name: str
    digest: str
    dtype: str
    num_layers: int
    linears: Mapping[str, Linear]
    tied_embeddings: bool = False

    @cached_property
    def module_index(self) -> Mapping[str, int]:
        """Column of each module in a blend's coefficients."""
        return {name: index for index, name in enumerate(self.linears)}

    def depth(self, module: str) -> float:
        """Where in the model a module lies, from 0 (the first layer) to 1 (the last).

        It is mergekit's `t`: 0 outside the layers (embeddings, head), 1 in a model of one layer.
        """
        layer, _ = split_layer(module)
        if layer is None:
            return 0.0
        return layer / (self.num_layers - 1) if self.num_layers > 1 else 1.0


def split_layer(module: str) -> tuple[int | None, str]:
    """Split a module path into its layer and its kind.

    `model.layers.3.self_attn.q_proj` is (3, "self_attn.q_proj"); `lm_head` is (None, "lm_head").
    """
    parts = module.split(".")
    for index, part in enumerate(parts):
        # The first number is the layer: in `layers.3.mlp.experts.5.up_proj` it is 3.
        if part.isdecimal():
            return int(part), ".".join(parts[index + 1 :])
    return None, module
