"""A transformers causal LM made ready for the engine: linears replaced, attention ours, and
described for merging.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from merging.base import Base, Linear
from server.engine.attention import IMPLEMENTATION, register
from server.engine.blended import BlendedLinear, Step


@dataclass(slots=True, eq=False)
class BlendedModel:
    """The base model with every linear replaced by a `BlendedLinear`, in the model's own order.

    `step` tells the linears what they need of a step; the runner sets it.
    """

    model: PreTrainedModel
    linears: Mapping[str, BlendedLinear]
    step: Step
    device: torch.device
    dtype: torch.dtype


def find_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Every plain linear layer with its module path. Subclasses do something else and are left
    alone.
    """
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, Conv1D):
            yield name, module


def prepare(model: PreTrainedModel) -> BlendedModel:
    """Replace the linears of `model` in place, and switch its attention to the engine's."""
    step = Step()
    head = model.get_output_embeddings()
    linears: dict[str, BlendedLinear] = {}
    for index, name in enumerate([name for name, _ in find_linears(model)]):
        module = model.get_submodule(name)  # one at a time: its weight may be freed when it goes
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        linears[name] = BlendedLinear(
            weight, module.bias, index=index, is_head=module is head, step=step
        )
        model.set_submodule(name, linears[name])
    model.requires_grad_(False).eval()
    register()
    model.set_attn_implementation(IMPLEMENTATION)
    return BlendedModel(model, linears, step, model.device, model.dtype)


def describe(model: PreTrainedModel, *, name: str, digest: str, dtype: torch.dtype) -> Base:
    """What merging must know of `model`, before `prepare`; its parameters may be on the meta
    device.
    """
    text_config = model.config.get_text_config(decoder=True)
    return Base(
        name=name,
        digest=digest,
        dtype=str(dtype).removeprefix("torch."),
        num_layers=text_config.num_hidden_layers,
        linears={path: _shape(module) for path, module in find_linears(model)},
        tied_embeddings=bool(text_config.tie_word_embeddings),
    )


def _shape(module: nn.Linear | Conv1D) -> Linear:
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
        return Linear(out_features, in_features, transposed=True)
    return Linear(module.out_features, module.in_features)
