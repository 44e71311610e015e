"""The names that a model's files have for its parameters, by transformers' own conversion.

Files and model disagree in many families. The head of a GPT-NeoX is `embed_out.weight` in files and
`lm_head.weight` in the model. A layer's experts are many tensors in files, and two parameters of
the model. A text model inside a vision model lies elsewhere. This module turns names of files into
the one name that a tensor has everywhere else (see `merging.naming`), and says where in its
parameter each part lies.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_renamings,
    rename_source_key,
    revert_weight_conversion,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a parameter that files hold as a tensor of its own: a view of the parameter with
    this shape, and these strides and this offset in elements.
    """

    parameter: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """This part of a contiguous tensor of the parameter's shape, without a copy."""
        assert parameter.is_contiguous()
        offset = parameter.storage_offset() + self.offset
        return parameter.as_strided(self.shape, self.strides, offset)


class ParameterNames:
    """The names of one model's tensors. It keeps no reference to the model.

    `parts`: all parts of parameters, by their names.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is as transformers made it, before its linears are replaced; its parameters may
        be on the meta device.
        """
        self._conversions = get_model_conversion_mapping(model)
        self._prefix = model.base_model_prefix
        parameters = model.state_dict()
        self._known = dict.fromkeys(parameters, True)
        converters = [c for c in self._conversions if isinstance(c, WeightConverter)]
        self.parts: Mapping[str, Part] = _parts(model, parameters, converters)
        owners = {part.parameter for part in self.parts.values()}
        self._shapes = {name: parameters[name].shape for name in owners}
        self._by_parameter: dict[str, dict[str, Part]] = {}
        for name, part in self.parts.items():
            self._by_parameter.setdefault(part.parameter, {})[name] = part

    def naming(self, names: Collection[str]) -> Mapping[str, str]:
        """The name of each tensor of some files; see `merging.naming.Naming`."""
        transforms: Sequence[WeightTransform] = deepcopy(self._conversions)  # they note their use
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        return {name: self._name(name, renamings, converters) for name in sorted(names)}

    def _name(
        self, name: str, renamings: list[WeightRenaming], converters: list[WeightConverter]
    ) -> str:
        parameter, pattern = rename_source_key(
            name, renamings, converters, self._prefix, self._known
        )
        if pattern is None:
            return parameter if parameter in self._known else name
        part = apply_renamings(name, renamings)
        return next((own for own in (part, f"{self._prefix}.{part}") if own in self.parts), name)

    def split(self, parameter: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A parameter's value as the tensors that files hold of it, by name: itself, or views."""
        parts = self.parts_of(parameter)
        if not parts:
            return {parameter: tensor}
        tensor = tensor.contiguous()
        return {name: part.of(tensor) for name, part in parts.items()}

    def join(self, parameter: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A parameter's value from the tensors that `read` gives by name.

        Raises whatever `read` does for a name that it does not have.
        """
        parts = self.parts_of(parameter)
        if not parts:
            return read(parameter)
        tensors = {name: read(name) for name in parts}
        size = sum(tensor.numel() for tensor in tensors.values())
        joined = next(iter(tensors.values())).new_empty(size)
        for name, part in parts.items():
            part.of(joined).copy_(tensors[name])
        return joined.view(self._shapes[parameter])

    def parts_of(self, parameter: str) -> Mapping[str, Part]:
        """The parts that files hold of a parameter, by name; none if they hold it whole."""
        return self._by_parameter.get(parameter, {})


class _Views(TorchFunctionMode):
    """Leaves tensors that are not contiguous as they are, so that a part of one stays a view."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))


def _parts(
    model: PreTrainedModel,
    parameters: Mapping[str, torch.Tensor],
    converters: Sequence[WeightConverter],
) -> dict[str, Part]:
    """Let transformers split the parameters as it does to save them, without their values."""
    if not converters:
        return {}
    empty = {n: torch.empty(p.shape, device="meta") for n, p in parameters.items()}
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in empty.items()}
    parts: dict[str, Part] = {}
    for name, tensor in _as_saved(model, empty, converters).items():
        owner = owners.get(tensor.untyped_storage()._cdata)
        if owner is None:
            continue
        part = Part(owner, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        if name not in parameters or part != _whole(name, parameters[name]):
            parts[name] = part
    return parts


def _whole(name: str, parameter: torch.Tensor) -> Part:
    strides = torch.empty(parameter.shape, device="meta").stride()
    return Part(name, tuple(parameter.shape), strides, 0)


def _as_saved(
    model: PreTrainedModel, tensors: dict[str, torch.Tensor], converters: Sequence[WeightConverter]
) -> dict[str, torch.Tensor]:
    """Parameters as files would hold them. Files' own renamings are left out: parts have the names
    that those lead to.
    """
    loaded = getattr(model, "_weight_conversions", None)
    model._weight_conversions = deepcopy(list(converters))  # where transformers looks for them
    try:
        with _Views():
            saved: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
            return saved
    finally:
        if loaded is None:
            del model._weight_conversions
        else:
            model._weight_conversions = loaded
