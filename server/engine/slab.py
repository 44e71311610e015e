"""The rank-stacked factors of the active adapters, and the step's coefficients for them.

For each linear that some active adapter touches: `a` [R, in] and `b` [R, out], the factors one
after the other along the rank. A row's blend is then R float32 numbers per linear, its weights
times each adapter's scale. Adapters are appended when a step first needs them and dropped when
enough of the slab has been idle for a while, so what a step usually does is one gather.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from merging.adapter import Adapter
from merging.blend import Blend

IDLE_STEPS = 64
"""An adapter that no row has used for this many steps may be dropped from the slab."""


def widest_rank(adapter: Adapter) -> int:
    """The largest rank over the adapter's modules: what a step that uses it pays for, at most."""
    return max(factor.rank for factor in adapter.factors.values())


@dataclass(slots=True)
class Stack:
    """One linear's stacked factors; the first `rank` rows of the buffers are in use."""

    a: torch.Tensor  # [capacity, in]
    b: torch.Tensor  # [capacity, out]
    rank: int = 0
    # for every stacked rank: which adapter slot it belongs to, and that adapter's scale here
    slots: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def append(self, a: torch.Tensor, b: torch.Tensor, slot: int, scale: float) -> None:
        """Add one adapter's factors, `a` [r, in] and `b` [out, r]."""
        rank = self.rank + len(a)
        if rank > len(self.a):
            self.a, self.b = (_grown(part, self.rank, 2 * rank) for part in (self.a, self.b))
        self.a[self.rank : rank].copy_(a)
        self.b[self.rank : rank].copy_(b.T)
        self.rank = rank
        self.slots += [slot] * len(a)
        self.scales += [scale] * len(a)


def _grown(part: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    grown = part.new_empty(capacity, part.shape[1])
    grown[:used].copy_(part[:used])
    return grown


@dataclass(frozen=True, slots=True)
class ActiveStack:
    """One linear's share of a step: `a` [R, in], `b` [R, out], `coefficients` float32 [rows, R].

    `unused` [rows, R] is true where a row's blend does not have that rank.
    """

    a: torch.Tensor
    b: torch.Tensor
    coefficients: torch.Tensor
    unused: torch.Tensor


class Slab:
    """Stacked factors for the linears of one base."""

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_rank: int | None = None,
    ) -> None:
        """`modules`: (out_features, in_features) by path, in the order of a blend's columns."""
        self._shapes = list(modules.values())
        self._index = {name: index for index, name in enumerate(modules)}
        self._dtype, self._device = dtype, device
        self._max_rank = max_rank
        self._clear()

    def _clear(self) -> None:
        self._stacks: dict[int, Stack] = {}
        self._slot_by_digest: dict[str, int] = {}
        self._ranks: list[int] = []
        self._idle_steps: dict[str, int] = {}
        self._gather: _Gather | None = None

    @property
    def rank(self) -> int:
        """Summed rank of the stacked adapters."""
        return sum(self._ranks)

    def activate(self, blends: Sequence[Blend]) -> dict[int, ActiveStack]:
        """Stacks by module index for rows that see `blends`, one each; empty if none has an
        adapter.
        """
        adapters = {adapter.digest: adapter for blend in blends for adapter in blend.adapters}
        if not adapters:
            return {}
        self._note_use(adapters)
        if self._is_mostly_idle() or self._would_be_full(adapters.values()):
            self._clear()
        try:
            for adapter in adapters.values():
                if adapter.digest not in self._slot_by_digest:
                    self._append(adapter)
        except BaseException:  # half an adapter must not be taken for a whole one
            self._clear()
            raise
        return self._active(blends)

    def _would_be_full(self, adapters: Iterable[Adapter]) -> bool:
        """Whether idle adapters have to make room for new ones."""
        new = [adapter for adapter in adapters if adapter.digest not in self._slot_by_digest]
        rank = self.rank + sum(widest_rank(adapter) for adapter in new)
        return bool(new) and self._max_rank is not None and rank > self._max_rank

    def _note_use(self, adapters: Iterable[str]) -> None:
        used = set(adapters)
        for digest in self._slot_by_digest:
            self._idle_steps[digest] = 0 if digest in used else self._idle_steps[digest] + 1

    def _is_mostly_idle(self) -> bool:
        idle = sum(
            self._ranks[slot]
            for digest, slot in self._slot_by_digest.items()
            if self._idle_steps[digest] >= IDLE_STEPS
        )
        return 2 * idle >= self.rank > 0

    def _append(self, adapter: Adapter) -> None:
        slot = len(self._ranks)
        self._slot_by_digest[adapter.digest] = slot
        self._idle_steps[adapter.digest] = 0
        self._ranks.append(widest_rank(adapter))
        for name, factor in adapter.factors.items():
            index = self._index[name]
            out_features, in_features = self._shapes[index]
            if index not in self._stacks:
                self._stacks[index] = Stack(
                    self._empty(0, in_features), self._empty(0, out_features)
                )
            self._stacks[index].append(factor.a, factor.b, slot, factor.scale)
        self._gather = None

    def _empty(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self._dtype, device=self._device)

    def _active(self, blends: Sequence[Blend]) -> dict[int, ActiveStack]:
        if self._gather is None:
            self._gather = _Gather.of(self._stacks, self._device)
        weights = torch.zeros(len(blends), len(self._ranks), len(self._shapes))
        for row, blend in enumerate(blends):
            if blend.adapters:
                slots = [self._slot_by_digest[adapter.digest] for adapter in blend.adapters]
                weights[row, slots] = blend.coefficients
        coefficients = self._gather.coefficients(weights.to(self._device))
        split = torch.split(coefficients, self._gather.sizes, dim=1)
        unused = torch.split(coefficients == 0, self._gather.sizes, dim=1)
        return {
            index: ActiveStack(stack.a[: stack.rank], stack.b[: stack.rank], *parts)
            for (index, stack), *parts in zip(self._stacks.items(), split, unused, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _Gather:
    """Index of every stacked rank of every linear, to make all coefficients of a step in one
    operation.
    """

    positions: torch.Tensor  # [total] into the flattened [slots, modules]
    scales: torch.Tensor  # [total]
    sizes: list[int]  # ranks of each linear

    @classmethod
    def of(cls, stacks: Mapping[int, Stack], device: torch.device) -> "_Gather":
        slots = torch.tensor([slot for stack in stacks.values() for slot in stack.slots])
        modules = torch.tensor([index for index, stack in stacks.items() for _ in stack.slots])
        scales = [scale for stack in stacks.values() for scale in stack.scales]
        return cls(
            positions=torch.stack([slots, modules]).to(device),
            scales=torch.tensor(scales, device=device),
            sizes=[stack.rank for stack in stacks.values()],
        )

    def coefficients(self, weights: torch.Tensor) -> torch.Tensor:
        """`weights` [rows, slots, modules] -> [rows, total], float32."""
        return weights[:, self.positions[0], self.positions[1]] * self.scales
