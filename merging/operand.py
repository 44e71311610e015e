"""What a tensor is merged of: the base's tensor and each source's, read piece by piece."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from merging.adapter_weights import AdapterWeights, StackedWeights
from merging.aligned_weights import AlignedWeights
from merging.checkpoint_weights import CheckpointWeights
from merging.errors import PlanError, SourceError
from merging.methods.apply import canonical_order, reordered
from merging.overlay_weights import OverlayWeights
from merging.pieces import Piece, Rows, Scratch, matrix_shape, pieces_of, split
from merging.setting import Scalar
from merging.source import Product, Weights
from merging.variant import Ingredient, TensorPlan, VariantPlan

Origin = tuple[str, str]
"""The digest of a model and the name of a tensor in it: what tells that two tensors are one."""


@dataclass(frozen=True)
class Operand:
    """One tensor `plain + product`, read as float32.

    `name` says whose it is, in messages; `digest` is that of the source's content, `tensor` its
    name of the tensor. `plain` is contiguous, in the dtype of its file. `is_base`: its plain tensor
    is the base's own, so that its delta is the product alone. `check` raises SourceError if the
    file behind `plain` changed: it is called before each piece is read, as reading behind an end
    that was cut off ends the process.
    """

    name: str
    digest: str
    tensor: str
    origin: Origin
    plain: torch.Tensor
    product: Product | None
    pieces: tuple[Piece, ...]
    is_base: bool
    check: Callable[[], None]

    @cached_property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return split(self.plain, self.pieces)

    def read_plain(self, index: int, into: torch.Tensor) -> None:
        """Write piece `index`, without its low-rank part, over `into`, which is flat."""
        self.check()
        into.copy_(self._parts[index])

    def read(self, index: int, into: torch.Tensor) -> None:
        """Write piece `index` over `into`."""
        self.read_plain(index, into)
        self.add_product(index, into)

    def read_delta(self, index: int, base: torch.Tensor | None, into: torch.Tensor) -> None:
        """Write piece `index` less `base`, that piece of the base, if there is one."""
        if self.is_base:
            into.zero_()
        else:
            self.read_plain(index, into)
            if base is not None:
                into.sub_(base)
        self.add_product(index, into)

    def add_product(self, index: int, into: torch.Tensor) -> None:
        """Add the low-rank part of piece `index`."""
        if self.product is not None:
            piece = self.pieces[index]
            left, right = self.product.left[piece.rows], self.product.right[:, piece.columns]
            into.view(piece.shape).addmm_(left, right)


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """All that one tensor is merged of.

    `sources` and `values` are in the canonical order, by content, so that no sum depends on the
    order in the recipe.
    """

    plan: TensorPlan
    base: Operand | None
    sources: tuple[Operand, ...]
    values: Mapping[str, Scalar | tuple[Scalar, ...]]
    pieces: tuple[Piece, ...]

    @property
    def all(self) -> tuple[Operand, ...]:
        """The base, if there is one, and the sources."""
        return self.sources if self.base is None else (self.base, *self.sources)

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The pieces of a contiguous tensor of this shape, as flat views."""
        return split(tensor, self.pieces)

    def read_base(self, index: int, scratch: Scratch) -> torch.Tensor:
        """Piece `index` of W0, flat; zeros without a base."""
        base = scratch.row("base", self.pieces[index].size)
        if self.base is None:
            return base.zero_()
        self.base.read(index, base)
        return base

    def read_deltas(self, index: int, base: torch.Tensor, scratch: Scratch) -> Rows:
        """Piece `index` of all deltas."""
        deltas = scratch.rows("deltas", len(self.sources), base.numel())
        relative = None if self.base is None else base
        for operand, delta in zip(self.sources, deltas.each, strict=True):
            operand.read_delta(index, relative, delta)
        return deltas


def open_operands(plan: VariantPlan, tensor: TensorPlan) -> Operands:
    """Open the tensors that one is merged of.

    `tensor.shape` is that of all of them. Raises PlanError with a reason for every tensor that is
    missing or has another shape, and SourceError if a file changed.
    """
    pieces = pieces_of(_matrix(plan, tensor))
    order = _canonical_order(plan, tensor)
    reasons: list[str] = []
    base = _open_base(plan, tensor, pieces, reasons)
    sources = [
        _open_source(plan, tensor, tensor.ingredients[i], base, pieces, reasons) for i in order
    ]
    if reasons:
        raise PlanError(reasons)
    return Operands(
        plan=tensor,
        base=base,
        sources=tuple(source for source in sources if source is not None),
        values=reordered(tensor.values, order),
        pieces=pieces,
    )


def _checkpoints(plan: VariantPlan) -> tuple[CheckpointWeights, ...]:
    """The opened checkpoints that a plan reads, each once."""
    models = [own.weights for own in plan.sources.values() if own.weights is not None]
    if any(tensor.base is not None for tensor in plan.tensors):
        models.append(plan.base)
    found = {id(opened): opened for model in models for opened in _opened(model)}
    return tuple(found.values())


def _opened(model: Weights) -> Iterator[CheckpointWeights]:
    if isinstance(model, CheckpointWeights):
        yield model
    elif isinstance(model, AlignedWeights):
        yield from (*_opened(model.weights), *_opened(model.resident))
    elif isinstance(model, OverlayWeights):
        yield from (*_opened(model.own), *_opened(model.resident))
    elif isinstance(model, AdapterWeights):
        yield from _opened(model.weights)
    elif isinstance(model, StackedWeights):
        for weights, _ in model.parts.values():
            yield from _opened(weights)


def check_unchanged(plan: VariantPlan) -> None:
    """Raises SourceError that names every file of a plan that changed since it was opened."""
    reasons: dict[str, None] = {}
    for opened in _checkpoints(plan):
        try:
            opened.check_unchanged()
        except SourceError as error:
            reasons |= dict.fromkeys(error.reasons)
    if reasons:
        raise SourceError(list(reasons))


def _matrix(plan: VariantPlan, tensor: TensorPlan) -> tuple[int, int]:
    shape = tensor.shape
    columns = plan.method.kind == "geometric" and plan.method.vectors(tensor.values) == "columns"
    if columns and len(shape) > 2:
        return (shape[0], math.prod(shape[1:]))  # a column goes along the first dimension
    return matrix_shape(shape)


def _canonical_order(plan: VariantPlan, tensor: TensorPlan) -> list[int]:
    """As `methods.apply.canonical_order`; one source's tensors (of a stack) go by name."""
    by_name = sorted(range(len(tensor.ingredients)), key=lambda i: tensor.ingredients[i].tensor)
    values = reordered(tensor.values, by_name)
    digests = [plan.sources[tensor.ingredients[i].source].digest for i in by_name]
    return [by_name[i] for i in canonical_order(values, digests)]


def _open_base(
    plan: VariantPlan, tensor: TensorPlan, pieces: tuple[Piece, ...], reasons: list[str]
) -> Operand | None:
    if tensor.base is None:
        return None
    plain = _plain(plan.base, tensor.base, tensor.shape, "the base", reasons)
    if plain is None:
        return None
    digest = plan.base.digest
    origin = (digest, tensor.base)
    check = _check_of(plan.base, tensor.base)
    return Operand("the base", digest, tensor.base, origin, plain, None, pieces, True, check)


def _open_source(
    plan: VariantPlan,
    tensor: TensorPlan,
    ingredient: Ingredient,
    base: Operand | None,
    pieces: tuple[Piece, ...],
    reasons: list[str],
) -> Operand | None:
    source = plan.sources[ingredient.source]
    digest, name = source.digest, f"source {ingredient.source!r}"
    if source.weights is None:
        assert tensor.base is not None, "an adapter's delta is relative to the base's tensor"
        if base is None:
            return None
        product = source.product(ingredient.tensor)
        return replace(base, name=name, digest=digest, tensor=ingredient.tensor, product=product)
    origin = _origin(source.weights, ingredient.tensor)
    if base is not None and origin == base.origin:
        return replace(base, name=name, digest=digest, tensor=ingredient.tensor)
    plain = _plain(source.weights, ingredient.tensor, tensor.shape, name, reasons)
    if plain is None:
        return None
    check = _check_of(source.weights, ingredient.tensor)
    return Operand(name, digest, ingredient.tensor, origin, plain, None, pieces, False, check)


def _origin(model: Weights, name: str) -> Origin:
    if isinstance(model, OverlayWeights) and not model.changes(name):
        model = model.resident
    return (model.digest, name)


def _check_of(model: Weights, name: str) -> Callable[[], None]:
    """Raises SourceError if the file changed of which a model's tensor is a view, if it is one."""
    while True:
        if isinstance(model, CheckpointWeights):
            return partial(model.check, name)
        if isinstance(model, StackedWeights):
            model, name = model.parts[name]
        elif isinstance(model, AdapterWeights):
            name = model.tied.get(name, name)
            model = model.weights
        elif isinstance(model, OverlayWeights):
            model = model.own if model.changes(name) else model.resident
        elif isinstance(model, AlignedWeights):
            model = model.weights
        else:
            return lambda: None


def _plain(
    model: Weights, name: str, shape: tuple[int, ...], owner: str, reasons: list[str]
) -> torch.Tensor | None:
    try:
        found = model.tensor(name).detach()
    except KeyError:
        reasons.append(f"{owner} has no tensor named {name}")
        return None
    except SourceError as error:
        reasons += [f"{owner}: {reason}" for reason in error.reasons]
        return None
    if tuple(found.shape) == shape:
        return found.contiguous()
    reasons.append(f"{name} is {list(found.shape)} in {owner}, and {list(shape)} is needed")
    return None
