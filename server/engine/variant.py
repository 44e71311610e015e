"""Variants: other weights for the resident model, which share every tensor that they do not change.

A variant is a tree of modules of its own. Its parameters, buffers and kernels are the resident
model's, but for those that were written for it; what a forward changes (the step, the results that
siblings still hold) is its own. So a variant costs the memory of what it changes.
"""

import secrets
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from merging.wording import shown
from server.engine.blended import BlendedLinear, Siblings, Step
from server.engine.errors import VariantError
from server.engine.kernels import can_pack
from server.engine.kv_cache import KVCache
from server.engine.layer_stack import LayerStack, clone, find_root
from server.engine.model import BlendedModel
from server.engine.parameter_names import ParameterNames, Part


@dataclass(slots=True, eq=False, weakref_slot=True)
class Variant:
    """Weights that rows can see in place of a blend. `digest` identifies them.

    Layer `i` keeps its keys and values in layer `cache_layers[i]` of `cache`: the engine's, or an
    extension of it where the model is deeper than the base. `num_bytes`: of the tensors that are
    its own, before `pack` and after it, without the plain weight that `pack` is just replacing.
    `kv_bytes`: what the extension takes at most.
    """

    digest: str
    model: BlendedModel
    cache: KVCache
    cache_layers: tuple[int, ...]
    num_bytes: int
    kv_bytes: int
    _written: tuple[Siblings, ...]
    key: str = field(init=False)
    """What keys and values in the cache are known by: another extension has none of them."""

    def __post_init__(self) -> None:
        self.key = f"{self.digest}/{secrets.token_hex(16)}" if self.kv_bytes else self.digest

    def pack(self) -> None:
        """Give the linears that were written for this variant their fastest kernels, one after the
        other. On any thread; the engine may be running the variant.
        """
        for siblings in self._written:
            siblings.pack()


class VariantFactory:
    """Makes variants of a resident model, on any thread."""

    def __init__(self, model: BlendedModel, cache: KVCache) -> None:
        """`cache`: the engine's, which deeper variants extend."""
        self._model = model
        self._cache = cache
        self._root = find_root(model.model, len(model.shapes))
        self._tensors: dict[str, torch.Tensor] = {}  # what is not in a linear, each once
        tensors = model.model.state_dict(keep_vars=True)
        seen: set[int] = set()
        for name, tensor in tensors.items():
            if id(tensor) not in seen:
                self._tensors[name] = tensor
                seen.add(id(tensor))

    def kv_bytes(self, layers: Sequence[int]) -> int:
        """What a variant with these layers takes at most for keys and values, beyond the base's."""
        shapes = self._model.shapes
        known = [shapes[layer] for layer in layers if 0 <= layer < len(shapes)]
        return self._cache.extra_bytes(known)

    def start(self, digest: str, layers: Sequence[int], names: Collection[str]) -> "Unfinished":
        """Allocate a variant in which the tensors `names` are other than the resident model's.

        `layers`: for each layer of the variant the resident one that it is built like. `names` are
        those of the parameters in a checkpoint of the variant; a tied head's own name unties it.
        Raises `VariantError` for layers and names that there are not.
        """
        num_layers = len(self._model.shapes)
        wrong = [layer for layer in layers if not 0 <= layer < num_layers]
        if wrong or not layers:
            raise VariantError(f"layers {wrong} do not exist: the model has {num_layers} layers")
        if self._root is None and list(layers) != list(range(num_layers)):
            raise VariantError(
                f"the layers of {type(self._model.model).__name__} cannot be stacked: they are not "
                "in one list of modules"
            )
        stack = LayerStack(self._root, tuple(layers))
        return Unfinished(digest, self._model, self._cache, self._tensors, stack, frozenset(names))


@dataclass(slots=True)
class _Group:
    """Siblings of a variant by their `names`, and of the resident model: `linears`.

    `weight`, `bias`: stacked, of the variant's own; None where it shares the resident model's.
    """

    names: tuple[str, ...]
    linears: tuple[BlendedLinear, ...]
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def views(self) -> dict[str, torch.Tensor]:
        """The part of each name in the stacked tensors, in the shape that a checkpoint has."""
        sizes = [linear.out_features for linear in self.linears]
        views: dict[str, torch.Tensor] = {}
        if self.weight is not None:
            parts = torch.split(self.weight, sizes)
            for name, linear, part in zip(self.names, self.linears, parts, strict=True):
                views[f"{name}.weight"] = part.T if linear.transposed else part
        if self.bias is not None:
            parts = torch.split(self.bias, sizes)
            for name, linear, part in zip(self.names, self.linears, parts, strict=True):
                if linear.has_bias:
                    views[f"{name}.bias"] = part
        return views


def _stacked(names: ParameterNames, stack: LayerStack) -> dict[str, dict[str, Part]]:
    """By parameter of a variant, the parts that checkpoints of it hold, by name."""
    stacked: dict[str, dict[str, Part]] = {}
    for name, part in names.parts.items():
        for own, parameter in zip(stack.names(name), stack.names(part.parameter), strict=True):
            stacked.setdefault(parameter, {})[own] = part
    return stacked


class Unfinished:
    """A variant whose own tensors are being written. All of `names` must be, then `finish` makes
    the variant.
    """

    def __init__(
        self,
        digest: str,
        model: BlendedModel,
        cache: KVCache,
        tensors: Mapping[str, torch.Tensor],
        stack: LayerStack,
        names: frozenset[str],
    ) -> None:
        """`tensors`: those of `model` that are not in a linear."""
        self._digest, self._model, self._cache, self._stack = digest, model, cache, stack
        self._groups = [
            _Group(linear_names, tuple(model.linears[name] for name in siblings))
            for siblings in model.siblings
            for linear_names in zip(*(stack.names(name) for name in siblings), strict=True)
        ]
        resident = {new: old for name, old in tensors.items() for new in stack.names(name)}
        self._parts = _stacked(model.names, stack)
        owners = {part: name for name, parts in self._parts.items() for part in parts}
        names = frozenset(owners.get(name, name) for name in names)
        self._refuse_unknown(names, resident)
        self._resident = {name: resident[name] for name in names if name in resident}
        self._own = {name: torch.empty_like(old) for name, old in self._resident.items()}
        self._num_bytes = sum(tensor.nbytes for tensor in self._own.values())
        self._tensors = dict(self._own)
        for group in self._groups:
            self._allocate(group, names)
            views = group.views()
            self._tensors |= views
            self._num_bytes += sum(tensor.nbytes for tensor in views.values())
        self._split()
        self._share_tied_head()

    @property
    def names(self) -> frozenset[str]:
        """All tensors that must be written.

        They are more than were asked for where linears share a product, or tensors of a checkpoint
        a parameter: then the others are to be written too, with the values that they have in the
        resident model.
        """
        return frozenset(self._tensors)

    @property
    def num_bytes(self) -> int:
        """What the variant's `num_bytes` will be; taken from now on."""
        return self._num_bytes

    def tensor(self, name: str) -> torch.Tensor:
        """Where to write one of `names`: in the shape of the checkpoint, maybe not contiguous. Its
        content is undefined.
        """
        return self._tensors[name]

    def finish(self) -> Variant:
        """The variant, ready to serve. The tensors must not be written to any more, nor kept."""
        step = Step()
        replaced: defaultdict[int | None, dict[int, object]] = defaultdict(dict)
        written = []
        for number, group in enumerate(self._groups):
            siblings = group.linears[0].siblings
            own = siblings.like(number, step, group.weight, group.bias)
            replaced[self._stack.layer_of(group.names[0])][id(siblings)] = own
            if group.weight is not None:
                written.append(own)
        for name, old in self._resident.items():
            new = self._own[name]
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=False)
            replaced[self._stack.layer_of(name)][id(old)] = new
        model = self._blended(replaced, step)
        self._tensors, self._own, self._groups = {}, {}, []
        cache = self._cache.extended(model.shapes)
        return Variant(
            self._digest,
            model,
            cache,
            cache.places(model.shapes),
            self._num_bytes,
            self._cache.extra_bytes(model.shapes),
            tuple(written),
        )

    def _blended(
        self, replaced: Mapping[int | None, Mapping[int, object]], step: Step
    ) -> BlendedModel:
        resident = self._model
        model = clone(resident.model, self._stack, replaced)
        linears = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BlendedLinear)
        }
        return BlendedModel(
            model=model,
            linears=linears,
            siblings=[group.names for group in self._groups],
            shapes=[resident.shapes[layer] for layer in self._stack.layers],
            tied_head=None,
            names=resident.names,
            step=step,
            device=resident.device,
            dtype=resident.dtype,
        )

    def _refuse_unknown(self, names: frozenset[str], resident: Collection[str]) -> None:
        known = set(resident)
        for group in self._groups:
            known.update(f"{name}.weight" for name in group.names)
            linears = zip(group.names, group.linears, strict=True)
            known.update(f"{name}.bias" for name, linear in linears if linear.has_bias)
        if unknown := sorted(names - known):
            raise VariantError(
                f"the model, with {len(self._stack.layers)} layers, has no tensors {shown(unknown)}"
            )

    def _allocate(self, group: _Group, names: frozenset[str]) -> None:
        num_rows = sum(linear.out_features for linear in group.linears)
        dtype, device = self._model.dtype, self._model.device
        if any(f"{name}.weight" in names for name in group.names):
            size = (num_rows, group.linears[0].in_features)
            group.weight = torch.empty(size, dtype=dtype, device=device)
        if any(f"{name}.bias" in names for name in group.names):
            group.bias = torch.zeros(num_rows, dtype=dtype, device=device)

    def _split(self) -> None:
        """Hand out a parameter that checkpoints hold in parts as these."""
        for name in self._parts.keys() & self._tensors.keys():
            whole = self._tensors.pop(name)
            self._tensors |= {part: at.of(whole) for part, at in self._parts[name].items()}

    def _share_tied_head(self) -> None:
        """Let a tied head follow a new embedding, unless it has a weight of its own."""
        embedding = id(self._model.model.get_input_embeddings().weight)
        for name, old in self._resident.items():
            if id(old) == embedding:
                for group in self._groups:
                    if self._model.tied_head in group.names and group.weight is None:
                        assert len(group.names) == 1, "the head reads what no other linear does"
                        group.weight = self._own[name]
                        self._num_bytes += group.weight.nbytes if can_pack(group.weight) else 0
