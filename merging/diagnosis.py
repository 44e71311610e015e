"""How the deltas of a merge agree, and what it does with them: figures by layer and kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from merging.base import split_layer

CHUNK: Final = 1 << 13
"""Elements that are widened to float64 at a time: few enough for a core's cache, and too few for
what is done with them to be worth a second thread.
"""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Deltas:
    """One tensor of a merge: `base` as it is, and what each source and the merge add to it.

    `base` is None where the method has none. The tensors are float32 and of one shape; `of_sources`
    are by the source's name.
    """

    name: str
    base: torch.Tensor | None
    of_sources: Mapping[str, torch.Tensor]
    merged: torch.Tensor


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What a source does in a group of tensors.

    `relative_norm`: of its delta, over that of the base. `cosine`: between its delta and the merged
    one. `contribution`: its share of the merged delta `m`. With the `c` that make `sum_i c_i tau_i`
    closest to `m` in each tensor, it is `c_i <tau_i, m> / ||m||^2`, both summed over the tensors.
    All shares add up to 1 where the merge is a linear combination, whose coefficients the `c` then
    are; what is missing to 1 is what no combination gives.
    """

    name: str
    relative_norm: float | None
    cosine: float | None
    contribution: float | None


@dataclass(frozen=True, slots=True)
class PairFigures:
    """How two sources agree in a group of tensors.

    `sign_conflict`: of the elements that both change, the share that they push apart.
    """

    first: str
    second: str
    cosine: float | None
    sign_conflict: float | None


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The tensors of one kind in one layer; `layer` is None outside the layers.

    `relative_change` is the norm of the merged delta over that of the base; None without a base, as
    is every figure that has no value because something is zero.
    """

    layer: int | None
    kind: str
    num_elements: int
    base_norm: float
    merged_norm: float
    relative_change: float | None
    sources: tuple[SourceFigures, ...]
    pairs: tuple[PairFigures, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The figures of a merge: `groups` in the order of the tensors, `total` over all of them.

    `dataclasses.asdict` turns it into JSON.
    """

    total: GroupFigures
    groups: tuple[GroupFigures, ...]


class _Sums:
    """What is added up over the tensors of a group.

    `gram` [n + 2, n + 2] has the products of the base, the deltas of the n sources and the merged
    delta; `explained` [n] has `c_i <tau_i, m>`; `conflicts` and `shared` count elements by pair.
    """

    def __init__(self, num_sources: int) -> None:
        self.gram: Array = np.zeros((num_sources + 2, num_sources + 2))
        self.explained: Array = np.zeros(num_sources)
        self.conflicts: Array = np.zeros((num_sources, num_sources))
        self.shared: Array = np.zeros((num_sources, num_sources))
        self.num_elements = 0

    def add(self, other: "_Sums") -> None:
        self.gram += other.gram
        self.explained += other.explained
        self.conflicts += other.conflicts
        self.shared += other.shared
        self.num_elements += other.num_elements


def diagnose(
    tensors: Iterable[Deltas],
    sources: Sequence[str],
    progress: Callable[[int], None] = lambda num_elements: None,
) -> Diagnosis:
    """Figures of a merge of `sources`, which may leave out tensors that they do not change.

    One tensor at a time is looked at, so that `tensors` may be made as they are asked for.
    `progress` is told how many elements each had.
    """
    groups: dict[tuple[int | None, str], _Sums] = {}
    total = _Sums(len(sources))
    for deltas in tensors:
        sums = _sums(deltas, sources)
        layer, kind = split_layer(deltas.name)
        groups.setdefault((layer, kind.removesuffix(".weight")), _Sums(len(sources))).add(sums)
        total.add(sums)
        progress(sums.num_elements)
    return Diagnosis(
        _figures(None, "all", total, sources),
        tuple(_figures(layer, kind, sums, sources) for (layer, kind), sums in groups.items()),
    )


def _sums(deltas: Deltas, sources: Sequence[str]) -> _Sums:
    sums = _Sums(len(sources))
    rows = [deltas.base, *(deltas.of_sources.get(name) for name in sources), deltas.merged]
    present = [(index, row.reshape(-1)) for index, row in enumerate(rows) if row is not None]
    where = np.ix_([index for index, _ in present], [index for index, _ in present])
    sums.num_elements = deltas.merged.numel()
    in_order = [index - 1 for index, _ in present if 0 < index < len(rows) - 1]
    pairs = np.ix_(in_order, in_order)
    wide = torch.empty(len(present), CHUNK, dtype=torch.float64)
    for start in range(0, sums.num_elements, CHUNK):
        parts = [row[start : start + CHUNK] for _, row in present]
        chunk = wide[:, : len(parts[0])]
        for own, part in zip(chunk, parts, strict=True):
            own.copy_(part)
        sums.gram[where] += (chunk @ chunk.T).numpy()
        if len(in_order) > 1:
            both, agreeing = _signs(parts[-1 - len(in_order) : -1])
            sums.shared[pairs] += both
            sums.conflicts[pairs] += (both - agreeing) / 2
    sums.explained = _explained(sums.gram)
    return sums


def _signs(parts: Sequence[torch.Tensor]) -> tuple[Array, Array]:
    """For each pair the number of elements that both have, and of those with one sign less those
    with two.
    """
    signs = torch.stack([part.sign() for part in parts])  # sums of up to CHUNK ones are exact
    present = signs.abs()
    both, agreeing = present @ present.T, signs @ signs.T
    return both.double().numpy(), agreeing.double().numpy()


def _explained(gram: Array) -> Array:
    """`c_i <tau_i, m>` for the `c` that make the sum of `c_i tau_i` closest to `m`."""
    with_merged = gram[1:-1, -1]
    # Of several solutions the one of least norm: sources that are equal share equally.
    coefficients = np.linalg.lstsq(gram[1:-1, 1:-1], with_merged, rcond=1e-10)[0]
    explained: Array = coefficients * with_merged
    return explained


def _figures(layer: int | None, kind: str, sums: _Sums, sources: Sequence[str]) -> GroupFigures:
    norms = np.sqrt(np.diag(sums.gram))
    base, merged = float(norms[0]), float(norms[-1])
    return GroupFigures(
        layer=layer,
        kind=kind,
        num_elements=sums.num_elements,
        base_norm=base,
        merged_norm=merged,
        relative_change=_ratio(merged, base),
        sources=tuple(
            SourceFigures(
                name=name,
                relative_norm=_ratio(norms[i], base),
                cosine=_cosine(sums.gram, norms, i, -1),
                contribution=_ratio(sums.explained[i - 1], sums.gram[-1, -1]),
            )
            for i, name in enumerate(sources, start=1)
        ),
        pairs=tuple(
            PairFigures(
                first=sources[i],
                second=sources[j],
                cosine=_cosine(sums.gram, norms, i + 1, j + 1),
                sign_conflict=_ratio(sums.conflicts[i, j], sums.shared[i, j]),
            )
            for i, j in combinations(range(len(sources)), 2)
        ),
    )


def _cosine(gram: Array, norms: Array, i: int, j: int) -> float | None:
    cosine = _ratio(gram[i, j], norms[i] * norms[j])
    return None if cosine is None else max(-1.0, min(1.0, cosine))


def _ratio(value: float, over: float) -> float | None:
    return float(value / over) if over > 0 else None
