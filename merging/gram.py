"""Inner products of a base's tensor and adapters' deltas, without any dense delta."""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import torch

from merging.adapter import Adapter

ROWS = 256  # of the base's weight that are widened to float64 at a time


def adapter_gram(adapters: Sequence[Adapter], module: str, w0: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of a module's weight W0 and the adapters' deltas, float64 [N+1, N+1].

    Entry 0 is W0, entry i the delta of adapter i; zeros if that does not change the module.
    `w0`: [out, in], so that a base that keeps it [in, out] (GPT-2's Conv1D) passes it transposed.
    With deltas `s_i B_i A_i` the entries are `s_i s_j sum((B_i^T B_j) * (A_i A_j^T))` and
    `s_i sum((B_i^T W0) * A_i)`: O(r^2 (out + in)) and O(r out in).
    """
    a, b, owners = _stacked(adapters, module, w0)
    squared, cross = 0.0, torch.zeros_like(a)  # ||W0||^2; B^T W0, [ranks, in]
    for start in range(0, len(w0), ROWS):
        rows = w0[start : start + ROWS].double()
        squared += float(rows.square().sum())
        cross.addmm_(b[start : start + ROWS].T, rows)
    gram = torch.zeros(len(adapters) + 1, len(adapters) + 1, dtype=torch.float64)
    gram[0, 0] = squared
    gram[0, 1:] = gram[1:, 0] = owners @ (cross * a).sum(dim=1)
    gram[1:, 1:] = owners @ ((b.T @ b) * (a @ a.T)) @ owners.T
    return (gram + gram.T) / 2  # exactly symmetric


def _stacked(
    adapters: Sequence[Adapter], module: str, w0: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All adapters' factors along the rank, float64: A [ranks, in], B [out, ranks] with the scales
    in it, and which adapter each rank is of, [N, ranks].
    """
    present = [(i, a.factors[module]) for i, a in enumerate(adapters) if module in a.factors]
    a = [factor.a.double() for _, factor in present]
    b = [factor.scale * factor.b.double() for _, factor in present]
    ranks = sum(factor.rank for _, factor in present)
    owners, start = torch.zeros(len(adapters), ranks, dtype=torch.float64), 0
    for index, factor in present:
        owners[index, start : start + factor.rank] = 1.0
        start += factor.rank
    empty = torch.zeros(0, w0.shape[1], dtype=torch.float64)
    return torch.cat([empty, *a]), torch.cat([empty.new_zeros(len(w0), 0), *b], dim=1), owners


class GramCache:
    """Gram matrices of one base by module and adapters' digests; call it like `adapter_gram`.

    It keeps the `max_entries` that were used last, of `8 (N+1)^2` bytes each. For any number of
    threads.
    """

    def __init__(self, max_entries: int = 1 << 16) -> None:
        self.max_entries = max_entries
        self._grams: OrderedDict[tuple[str, ...], torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._grams)

    def __call__(self, adapters: Sequence[Adapter], module: str, w0: torch.Tensor) -> torch.Tensor:
        key = (module, *(adapter.digest for adapter in adapters))
        with self._lock:
            if key in self._grams:
                self._grams.move_to_end(key)
                return self._grams[key].clone()
        gram = adapter_gram(adapters, module, w0)
        with self._lock:
            self._grams[key] = gram
            while len(self._grams) > self.max_entries:
                self._grams.popitem(last=False)
        return gram.clone()
