"""Another tree of modules over the tensors of a model, with layers of its own choice."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from merging.base import TOWER, locate

UNCHANGING: Final = (type(None), bool, int, float, str, type, FunctionType, torch.dtype)


@dataclass(frozen=True, slots=True)
class LayerStack:
    """Which layer of a model each layer of another is built like.

    `root`: the path of the model's list of layers; None if it has none that can be told, and then
    `layers` are its own.
    """

    root: str | None
    layers: tuple[int, ...]

    def names(self, name: str) -> list[str]:
        """What the tensor or module `name` of the model is called in the other, once for each layer
        that is built like its own.
        """
        place = locate(name)
        if place is None or place.root != self.root:
            return [name]
        return [place.at(i) for i, layer in enumerate(self.layers) if layer == place.layer]

    def layer_of(self, name: str) -> int | None:
        """The layer of the other model in which its `name` is; None outside of them."""
        place = locate(name)
        return None if place is None or place.root != self.root else place.layer


def find_root(model: nn.Module, num_layers: int) -> str | None:
    """The path of the model's list of layers; None if there is none, or more than one."""
    found = [
        path
        for path, module in model.named_modules()
        if type(module) is nn.ModuleList
        and len(module) == num_layers
        and not TOWER.search(path)
        and locate(path) is None
    ]
    return found[0] if len(found) == 1 else None


def clone(
    model: PreTrainedModel, stack: LayerStack, replaced: Mapping[int | None, Mapping[int, object]]
) -> PreTrainedModel:
    """A model of the layers in `stack` whose tensors are those of `model`, not copies.

    `replaced`: for each layer of the clone, and for what is outside of them (None), by the id of an
    object of `model` what stands in its place.
    """
    kept = {id(tensor): tensor for tensor in _tensors(model)} | _configs(model, stack)
    outside = {**kept, **replaced.get(None, {})}
    if stack.root is not None:
        resident = model.get_submodule(stack.root)
        assert isinstance(resident, nn.ModuleList)
        layers = nn.ModuleList()
        for number, source in enumerate(stack.layers):
            memo = {**kept, **replaced.get(number, {})}
            layers.append(_numbered(_copied(resident[source], memo), number))
        layers.training = resident.training
        outside[id(resident)] = layers
    copied: PreTrainedModel = _copied(model, outside)
    return copied


def _copied(value: Any, memo: dict[int, object]) -> Any:
    """As `copy.deepcopy`, which takes three times as long for modules: they are mostly dicts."""
    if type(value) in UNCHANGING:
        return value
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if isinstance(value, nn.Module):
        new = memo[id(value)] = type(value).__new__(type(value))
        vars(new).update((name, _copied(each, memo)) for name, each in vars(value).items())
    elif type(value) in (dict, OrderedDict):
        new = memo[id(value)] = type(value)()
        new.update((key, _copied(each, memo)) for key, each in value.items())
    elif type(value) is set:
        new = memo[id(value)] = {_copied(each, memo) for each in value}
    else:
        new = copy.deepcopy(value, memo)
    return new


def _numbered(layer: nn.Module, number: int) -> nn.Module:
    """Tell the layer's modules which one they are in."""
    for module in layer.modules():
        if getattr(module, "layer_idx", None) is not None:
            module.layer_idx = number  # type: ignore[assignment]
    return layer


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for values in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in values.values() if isinstance(value, torch.Tensor))


def _configs(model: PreTrainedModel, stack: LayerStack) -> dict[int, object]:
    """By id, the configs that the clone has: the model's own, or copies that know its layers."""
    configs = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, PreTrainedConfig | GenerationConfig)
    ]
    own = range(model.config.get_text_config(decoder=True).num_hidden_layers)
    if stack.layers == tuple(own):
        return {id(config): config for config in configs}
    memo: dict[int, object] = {}
    for config in configs:
        copy.deepcopy(config, memo)
    for changed in list(memo.values()):
        if getattr(changed, "num_hidden_layers", None) == len(own):
            _set_layers(changed, stack.layers, len(own))
    return memo


def _set_layers(config: object, layers: Sequence[int], num_layers: int) -> None:
    """Adapt the number of layers, and all lists that hold something of each."""
    for name, value in list(vars(config).items()):
        is_list = isinstance(value, list | tuple) and len(value) == num_layers
        if is_list and ("layer" in name or "block" in name):
            setattr(config, name, type(value)(value[layer] for layer in layers))
    config.num_hidden_layers = len(layers)  # type: ignore[attr-defined]
