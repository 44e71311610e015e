"""A transformers causal LM made ready for the engine: linears replaced, attention chosen, and
described for merging.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from merging.base import Base, Linear
from server.engine.attention import IMPLEMENTATION, connect, register
from server.engine.blended import BlendedLinear, Siblings, Step, joined_bias, joined_weight
from server.engine.kernels import choose_kernel
from server.engine.kv_cache import LayerShape
from server.engine.parameter_names import ParameterNames


@dataclass(slots=True, eq=False)
class BlendedModel:
    """A model with every linear replaced by a `BlendedLinear`, in the model's own order.

    `siblings`: the names of `linears`, those that read one input together. `shapes`: what each
    layer keeps for a token. `tied_head`: the linear whose weight is that of the embedding, if one
    is. `names`: what files call its parameters. `step` tells the linears what they need of a step;
    the runner sets it. `is_packed`: its attention is ours, so that all rows of a step pass through
    it as one; else it is the family's own, and rows of one length do.
    """

    model: PreTrainedModel
    linears: Mapping[str, BlendedLinear]
    siblings: Sequence[Sequence[str]]
    shapes: Sequence[LayerShape]
    tied_head: str | None
    names: ParameterNames
    step: Step
    device: torch.device
    dtype: torch.dtype
    is_packed: bool = True

    def use_attention(self, *, is_packed: bool) -> None:
        """Switch to our attention, or to the family's own. Raises `ValueError` where it has no
        choice.
        """
        if self.model._can_set_attn_implementation():
            register()
            connect(self.model, self.step)
            self.model.set_attn_implementation(IMPLEMENTATION if is_packed else "eager")
        elif is_packed:
            raise ValueError("the family has one attention only, its own")
        self.is_packed = is_packed


def find_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Every plain linear layer with its module path. Subclasses do something else and are left
    alone, but for Falcon's.
    """
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, Conv1D, FalconLinear):
            yield name, module


@contextmanager
def find_siblings(model: nn.Module) -> Iterator[list[list[str]]]:
    """Watches `model` while it runs: the names of its linears, those that are called one after the
    other with the same tensor together.
    """
    siblings: list[list[str]] = []
    seen: set[str] = set()
    last: torch.Tensor | None = None

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal last
            if name in seen:
                return
            if args[0] is last:
                siblings[-1].append(name)
            else:
                siblings.append([name])
            seen.add(name)
            last = args[0]

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in find_linears(model)]
    try:
        yield siblings
    finally:
        for handle in hooks:
            handle.remove()
        siblings += [[name] for name, _ in find_linears(model) if name not in seen]


def prepare(
    model: PreTrainedModel, siblings: Sequence[Sequence[str]], shapes: Sequence[LayerShape]
) -> BlendedModel:
    """Replace the linears of `model` in place. `use_attention` is still to be called."""
    step, file_names = Step(), ParameterNames(model)
    head = model.get_output_embeddings()
    linears = dict(find_linears(model))
    is_tied = {name: _is_tied(linear, model) for name, linear in linears.items()}
    order = list(linears)
    made: dict[str, BlendedLinear] = {}
    for number, names in enumerate(siblings):
        # one after the other: their weights may be freed when they go
        modules = [linears.pop(name) for name in names]
        together = _join(modules, number=number, has_head=head in modules, step=step)
        for position, (name, module) in enumerate(zip(names, modules, strict=True)):
            made[name] = BlendedLinear(
                _weight(module).shape,
                together,
                position,
                has_bias=module.bias is not None,
                transposed=isinstance(module, Conv1D),
            )
            model.set_submodule(name, made[name])
    model.requires_grad_(False).eval()
    return BlendedModel(
        model=model,
        linears={name: made[name] for name in order},
        siblings=siblings,
        shapes=shapes,
        tied_head=next((name for name in order if is_tied[name]), None),
        names=file_names,
        step=step,
        device=model.device,
        dtype=model.dtype,
    )


def _join(
    modules: Sequence[nn.Linear | Conv1D], *, number: int, has_head: bool, step: Step
) -> Siblings:
    weights = [_weight(module) for module in modules]
    bias = joined_bias(weights, [module.bias for module in modules])
    kernel = choose_kernel(joined_weight(weights))
    sizes = [len(weight) for weight in weights]
    return Siblings(kernel, bias, sizes, number=number, has_head=has_head, step=step)


def _weight(module: nn.Linear | Conv1D) -> torch.Tensor:
    """[out, in]."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _is_tied(module: nn.Linear | Conv1D, model: PreTrainedModel) -> bool:
    return module.weight is model.get_input_embeddings().weight


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
        ties=_ties(model),
        naming=ParameterNames(model).naming,
    )


def _ties(model: PreTrainedModel) -> dict[str, str]:
    """The head's tensor and the embedding's, by name, where they are one."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    return {f"{names[id(head)]}.weight": f"{names[id(embedding)]}.weight"}


def _shape(module: nn.Linear | Conv1D) -> Linear:
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
        return Linear(out_features, in_features, transposed=True)
    return Linear(module.out_features, module.in_features)
