"""Linear and geometric methods, piece by piece: combinations, and Gram matrices for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from merging.merged_tensor import MergedTensor
from merging.methods.combination import Coefficient, Combination
from merging.methods.method import Vectors
from merging.operand import Operand, Operands
from merging.pieces import Scratch
from merging.source import Product

LARGEST_SHARE: Final = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """`base_scale * W0 + sum_i c_i (x_i - W0)`, sorted by what is read: each tensor is read once.

    `shares`: float32 [1 or 2, terms]. Row 0 has the coefficients of the plain tensors, and 1 for
    the product of all low-rank parts, which has the coefficients in it. Row 1, where there is a
    base, has those of the result less W0.

    `is_exact`: whether the sum keeps float32's precision: large multiples of nearly equal tensors,
    instead of small differences of them, would not.
    """

    plains: tuple[Operand, ...]
    product: Product | None
    shares: torch.Tensor
    is_exact: bool


def terms_of(operands: Operands, combination: Combination) -> Terms:
    """The terms of a combination whose coefficients are numbers."""
    shares: dict[tuple[str, str], list[float]] = {}
    plains: dict[tuple[str, str], Operand] = {}
    factors: list[tuple[float, Product]] = []
    base = operands.base
    if base is not None:
        plains[base.origin], shares[base.origin] = base, [float(combination.base_scale)]
    for operand, coefficient in zip(operands.sources, combination.coefficients, strict=True):
        number = float(coefficient)
        if operand.product is not None:
            factors.append((number, operand.product))
        if not operand.is_base:
            plains.setdefault(operand.origin, operand)
            shares.setdefault(operand.origin, []).append(number)
            if base is not None:
                shares[base.origin].append(-number)
    rows = [[math.fsum(shares[origin]) for origin in plains]]
    if base is not None:
        less_base = [-1.0 if origin == base.origin else 0.0 for origin in plains]
        rows.append([math.fsum(pair) for pair in zip(rows[0], less_base, strict=True)])
    product = _joined(factors)
    return Terms(
        tuple(plains.values()),
        product,
        torch.tensor([row + [1.0] * (product is not None) for row in rows]),
        all(abs(share) <= LARGEST_SHARE for row in rows for share in row),
    )


def _joined(factors: Sequence[tuple[float, Product]]) -> Product | None:
    if not factors:
        return None
    left = torch.cat([number * product.left for number, product in factors], dim=1)
    return Product(left, torch.cat([product.right for _, product in factors]))


def combine_piece(
    operands: Operands, terms: Terms, index: int, scratch: Scratch, merged: MergedTensor
) -> bool:
    """Write one piece of a combination; whether it is finite."""
    size, (num_rows, num_terms) = operands.pieces[index].size, terms.shares.shape
    inputs = scratch.rows("terms", num_terms, size)
    results = scratch.rows("results", num_rows, size)
    for operand, row in zip(terms.plains, inputs.each, strict=False):
        operand.read_plain(index, row)
    if terms.product is not None:
        piece = operands.pieces[index]
        left, right = terms.product.left[piece.rows], terms.product.right[:, piece.columns]
        torch.mm(left, right, out=inputs.each[-1].view(piece.shape))
    torch.mm(terms.shares, inputs.all, out=results.all)
    base = None if operands.base is None else inputs.each[0]
    return merged.write(index, results.each[0], results.each[-1], base)


def combine_deltas(
    operands: Operands,
    combination: Combination,
    vectors: Vectors,
    index: int,
    scratch: Scratch,
    merged: MergedTensor,
) -> bool:
    """Write one piece of a combination as it is written down: W0 and the deltas one by one, with
    coefficients for each row or column, or for all.
    """
    piece = operands.pieces[index]
    base = operands.read_base(index, scratch)
    deltas = operands.read_deltas(index, base, scratch)
    result, change = scratch.rows("results", 2, piece.size).each

    def own(coefficient: Coefficient) -> torch.Tensor:
        if not isinstance(coefficient, torch.Tensor):
            return torch.tensor([[coefficient]], dtype=torch.float32)
        if vectors == "columns":
            return coefficient[piece.columns].float()[None]
        return coefficient[piece.rows].float()[:, None]

    whole = result.view(piece.shape)
    torch.mul(base.view(piece.shape), own(combination.base_scale), out=whole)
    for delta, coefficient in zip(deltas.each, combination.coefficients, strict=True):
        whole.addcmul_(delta.view(piece.shape), own(coefficient))
    if operands.base is None:
        return merged.write(index, result, result, None)
    torch.sub(result, base, out=change)
    return merged.write(index, result, change, base)


class GramSum:
    """The Gram matrices of the base's tensor and the deltas, summed over pieces in float64.

    `vectors` says of what: one of the whole tensor, or one for each row or column. Parts are summed
    in their order, whatever thread made them.
    """

    def __init__(self, operands: Operands, vectors: Vectors, num_parts: int) -> None:
        # A vector is one row, and one column too.
        is_matrix = len(operands.plan.shape) > 1
        self.vectors: Vectors = vectors if is_matrix or vectors != "columns" else "rows"
        self._operands = operands
        self._parts: list[tuple[int, torch.Tensor]] = [(0, torch.empty(0))] * num_parts

    def add(self, part: int, indices: range, scratch: Scratch) -> bool:
        """Sum part `part`, the pieces `indices`; whether all inputs are finite."""
        pieces = self._operands.pieces
        first, last = pieces[indices[0]].rows.start, pieces[indices[-1]].rows.stop
        width = len(self._operands.sources) + 1
        count = {"all": 1, "rows": last - first, "columns": pieces[-1].columns.stop}[self.vectors]
        sums = torch.zeros(count, width, width, dtype=torch.float64)
        for index in indices:
            self._add_piece(index, sums, first, scratch)
        self._parts[part] = (first if self.vectors == "rows" else 0, sums)
        return bool(torch.isfinite(sums).all())

    def _add_piece(self, index: int, sums: torch.Tensor, first: int, scratch: Scratch) -> None:
        operands, piece = self._operands, self._operands.pieces[index]
        base = operands.read_base(index, scratch)
        deltas = operands.read_deltas(index, base, scratch)
        stack = torch.empty(len(deltas.each) + 1, piece.size, dtype=torch.float64)
        stack[0].copy_(base)
        stack[1:].copy_(deltas.all)
        if self.vectors == "all":
            sums[0].addmm_(stack, stack.T)
            return
        cube = stack.view(-1, *piece.shape)  # [N+1, rows, columns]
        if self.vectors == "rows":
            split, where = cube.permute(1, 0, 2), slice(piece.rows.start - first, None)
        else:
            split, where = cube.permute(2, 0, 1), piece.columns
        part = torch.bmm(split, split.transpose(1, 2))
        sums[where][: len(part)] += part

    def total(self) -> torch.Tensor:
        """Float64 [N+1, N+1], or [rows or columns, N+1, N+1]."""
        num_vectors = max((start + len(sums) for start, sums in self._parts), default=0)
        width = len(self._operands.sources) + 1
        total = torch.zeros(max(num_vectors, 1), width, width, dtype=torch.float64)
        for start, sums in self._parts:
            total[start : start + len(sums)] += sums
        return total[0] if self.vectors == "all" else total
