"""A half-precision model that computes in float32 for a while: what its rounding is measured by."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from server.engine.blended import BlendedLinear, Siblings
from server.engine.kernels import Kernel, PlainKernel
from server.engine.model import BlendedModel


@contextmanager
def in_float32(model: BlendedModel) -> Iterator[None]:
    """Forwards of `model` compute in float32 inside this context.

    A layer's float32 weights exist while the layer runs, so that they take the memory of one layer,
    and of what is outside of the layers (embeddings, head). Nothing else may run the model.
    """
    layers = list(_outermost_layers(model.model))
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [module for module in model.model.modules() if id(module) not in inside]
    with ExitStack() as stack:
        for layer in layers:
            for handle in _raise_while_running(layer):
                stack.callback(handle.remove)
        restore = _raise(outside)
        stack.callback(restore)
        yield


def _outermost_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in lists of modules, but not those inside of them."""
    for child in module.children():
        if isinstance(module, nn.ModuleList):
            yield child
        else:
            yield from _outermost_layers(child)


def _raise_while_running(layer: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
    restores: list[Callable[[], None]] = []

    def before(module: nn.Module, args: object) -> None:
        restores.append(_raise(module.modules()))

    def after(module: nn.Module, args: object, output: object) -> None:
        restores.pop()()

    yield layer.register_forward_pre_hook(before)
    yield layer.register_forward_hook(after, always_call=True)


def _raise(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Give the own tensors of `modules` float32 values; returns what takes them away again."""
    tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    products: dict[int, tuple[Siblings, Kernel, torch.Tensor | None]] = {}
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point() and id(tensor) not in tensors:
                tensors[id(tensor)] = (tensor, tensor.data)
        if isinstance(module, BlendedLinear) and id(module.siblings) not in products:
            siblings = module.siblings
            products[id(siblings)] = (siblings, siblings.kernel, siblings.bias)
    for tensor, values in tensors.values():
        tensor.data = values.float()
    for siblings, kernel, bias in products.values():
        siblings.kernel = PlainKernel(kernel.weight.float())
        siblings.bias = None if bias is None else bias.float()

    def restore() -> None:
        for tensor, values in tensors.values():
            tensor.data = values
        for siblings, kernel, bias in products.values():
            siblings.kernel, siblings.bias = kernel, bias

    return restore
