"""The merged tensor: written piece by piece, checked, and measured."""

import math
from collections.abc import Sequence

import torch

from merging.pieces import Piece, split


def square(values: torch.Tensor) -> float:
    """The squared norm of a piece, flat and float32, in float32."""
    return float(torch.dot(values, values).item())


class MergedTensor:
    """Writes pieces of a float32 result over `target`, rounding once to its dtype.

    `target` may be a view that is not contiguous, or on another device; then the whole tensor is
    gathered first. Several threads may write, each piece once.
    """

    def __init__(self, target: torch.Tensor, pieces: Sequence[Piece]) -> None:
        self._target = target.detach()
        direct = target.is_contiguous() and target.device.type == "cpu"
        self._gathered = self._target if direct else torch.empty(target.shape, dtype=target.dtype)
        self._parts = split(self._gathered, pieces)
        self._largest = torch.finfo(target.dtype).max
        self._squares = [(0.0, 0.0)] * len(pieces)

    def write(
        self, index: int, merged: torch.Tensor, delta: torch.Tensor, base: torch.Tensor | None
    ) -> bool:
        """Write piece `index`; whether all of it is finite in the target's dtype.

        `merged` is `base + delta`, or `delta` where there is no base. All are flat and float32.
        """
        part = self._parts[index]
        part.copy_(merged)
        change, whole = square(delta), 0.0 if base is None else square(base)
        self._squares[index] = (change, whole)
        # No element is larger than the norms: look closer only if these are huge or not finite.
        bounded = math.sqrt(change) + math.sqrt(whole) < self._largest
        return bounded or bool(torch.isfinite(part).all())

    def finish(self) -> float | None:
        """All pieces are written. Returns ||merged - W0|| / ||W0||, or None if W0 is zero."""
        if self._gathered is not self._target:
            self._target.copy_(self._gathered)
        change, whole = (math.fsum(pair[i] for pair in self._squares) for i in (0, 1))
        return math.sqrt(change / whole) if whole > 0 else None
