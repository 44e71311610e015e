"""The demo model under any recipe: blends written densely into the weights."""

from pathlib import Path

import torch

from merging.adapter import read_adapter
from merging.base import Base, Linear
from merging.checkpoint import checkpoint_digest
from merging.plan import base_plan, plan
from merging.recipe import Recipe
from scripts.demo_model import DemoModel, linears
from server.demo import demo_sources


class Blender:
    """The demo model, whose weights can be replaced by those of any recipe."""

    def __init__(self, folder: Path) -> None:
        self.model = DemoModel(folder)
        self.linears = linears(self.model.network)
        self.weights = {name: linear.weight.clone() for name, linear in self.linears.items()}
        self.adapters = {name: read_adapter(path) for name, path in demo_sources().items()}
        self.base = Base(
            name=folder.name,
            digest=checkpoint_digest(folder),
            dtype="bfloat16",
            num_layers=self.model.network.config.num_hidden_layers,
            linears={
                name: Linear(linear.out_features, linear.in_features)
                for name, linear in self.linears.items()
            },
        )

    @torch.inference_mode()
    def load(self, recipe: Recipe | None) -> None:
        """Write `W0 + sum_i c_i s_i B_i A_i` into every linear layer, computed in float32."""
        compiled = plan(recipe, self.adapters, self.base) if recipe else base_plan(self.base)
        blend = compiled.blend
        for column, (name, linear) in enumerate(self.linears.items()):
            weight = self.weights[name].float()
            for adapter, coefficients in zip(blend.adapters, blend.coefficients, strict=True):
                if factor := adapter.factors.get(name):
                    scale = float(coefficients[column]) * factor.scale
                    weight += scale * (factor.b.float() @ factor.a.float())
            linear.weight.copy_(weight)
