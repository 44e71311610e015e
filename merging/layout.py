"""The layout of a merged model: its tensors, and of which tensors of which models they are made."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from merging.base import Base, LayerPlace, locate
from merging.recipe import BASE, Recipe
from merging.section import Section

EMBEDDINGS = ("emb", "wte", "wpe")
"""Parts of the names that tensors before the first layer have; others outside come after it."""

NUM_LAYOUTS = 64
"""Layouts that are remembered: one for each set of sources, and for each way to slice."""


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of the merged model.

    `like`: the tensor of the resident base that has its shape. `offset`: its layer within the
    section; None outside the layers. `t`: see `Section.depth`. `inputs`: the tensors that it is
    made of, of each of the section's sources; `reference`: that of its base_model.
    """

    name: str
    like: str
    section: Section
    offset: int | None
    t: float
    inputs: tuple[str, ...]
    reference: str | None


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors of the merged model, in its order.

    `layers`: for each of its layers the layer of the resident base that it is built like.
    `is_plain`: every tensor is made of the tensors of its own name. `is_whole`: it has all tensors,
    not only the weights of linear layers.
    """

    places: tuple[Place, ...]
    layers: tuple[int, ...]
    is_plain: bool
    is_whole: bool


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The names of the resident base's tensors: before, in (by layer) and after the layers."""

    before: Sequence[str]
    layers: Mapping[int, Sequence[LayerPlace]]
    after: Sequence[str]
    is_whole: bool


def tensor_names(base: Base, shapes: Mapping[str, tuple[int, ...]] | None) -> TensorNames:
    """Sort the base's tensors. Without `shapes` only the weights of its linear layers are known.

    A tied head, which the files lack, is among them, and so is any other linear layer's weight:
    one that cannot be read is told by its name, and never left out. Tensors that are computed again
    when a model is loaded are not.
    """
    linears = [f"{module}.weight" for module in base.linears]
    names = linears
    if shapes is not None:
        names = [name for name, shape in shapes.items() if not is_derived(name, shape)]
        names += [name for name in linears if name not in shapes]
    layers: dict[int, list[LayerPlace]] = {}
    before, after, known = [], [], set(linears)
    for name in names:
        place = locate(name)
        if place is not None:
            layers.setdefault(place.layer, []).append(place)
        elif name not in known and any(part in name for part in EMBEDDINGS):
            before.append(name)
        else:
            after.append(name)
    return TensorNames(before, layers, after, shapes is not None)


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a file is none of the model's: old checkpoints hold rotary frequencies
    and attention masks.
    """
    if name.endswith((".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")):
        return True
    return name.endswith((".attn.bias", ".attention.bias")) and len(shape) == 4


def range_problems(recipe: Recipe, base: Base) -> Iterator[str]:
    """Why the layers of the merged model cannot be built like the base's."""
    for section in recipe.sections(base.num_layers):
        last = section.num_layers - 1
        if _like(section, last) >= base.num_layers:
            ends = {name: start + last + 1 for name, start in sorted(section.starts.items())}
            yield (
                f"{section.where}layers up to {min(ends.values())} are asked for, and the base has "
                f"{base.num_layers}"
            )


def lay_out(sections: tuple[Section, ...], base: Base, names: TensorNames) -> Layout:
    """Lay out the sections of a recipe, which must have no `range_problems`.

    Gradients restart in every slice, as in mergekit; the tensors before the layers belong to the
    first slice, those after them to the last.
    """
    places = [_outside(name, sections[0]) for name in names.before]
    layers: list[int] = []
    for section in sections:
        for offset in range(section.num_layers):
            like = _like(section, offset)
            places += _layer(section, offset, len(layers), names.layers.get(like, ()))
            layers.append(like)
    places += [_outside(name, sections[-1]) for name in names.after]
    aligned, first = True, 0
    for section in sections:
        aligned = aligned and set(section.starts.values()) == {first}
        first += section.num_layers
    is_plain = aligned and first == base.num_layers
    return Layout(tuple(places), tuple(layers), is_plain, names.is_whole)


class Layouts:
    """Lays out recipes on one base. The last layouts are remembered: an edit of weights keeps its
    preset's.
    """

    def __init__(self, base: Base, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        """`shapes`: see `tensor_names`."""
        names = tensor_names(base, shapes)
        self._lay_out = lru_cache(maxsize=NUM_LAYOUTS)(partial(lay_out, base=base, names=names))

    def of(self, sections: tuple[Section, ...]) -> Layout:
        """The layout of these sections; see `lay_out`."""
        return self._lay_out(sections)


def _like(section: Section, offset: int) -> int:
    """The resident base's layer that a layer is built like: its own in the section where it takes
    part, else the base_model's, else the lowest of all.
    """
    starts = section.starts
    start = starts.get(BASE, starts.get(section.base_model or "", min(starts.values())))
    return start + offset


def _outside(name: str, section: Section) -> Place:
    inputs = (name,) * len(section.sources)
    reference = None if section.base_model is None else name
    return Place(name, name, section, None, section.depth(None), inputs, reference)


def _layer(
    section: Section, offset: int, number: int, kinds: Iterable[LayerPlace]
) -> Iterator[Place]:
    t = section.depth(offset)
    layers = [section.starts[name] + offset for name in section.sources]
    base_layer = None
    if section.base_model is not None:
        base_layer = section.starts[section.base_model] + offset
    for kind in kinds:
        at = {layer: kind.at(layer) for layer in {number, kind.layer, *layers}}
        reference = None if base_layer is None else kind.at(base_layer)
        inputs = tuple(at[layer] for layer in layers)
        yield Place(at[number], at[kind.layer], section, offset, t, inputs, reference)
