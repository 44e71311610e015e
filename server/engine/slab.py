"""The rank-stacked factors of the active adapters, and the step's coefficients for them.

For each linear that some active adapter touches: `a` [R, in] and `b` [R, out], the factors one
after the other along the rank; linears that read one input have their `a` in one piece. A row's
blend is then R float32 numbers per linear, its weights times each adapter's scale. Adapters are
appended when a step first needs them and dropped when enough of the slab has been idle for a while,
so what a step usually does is one gather, or nothing where its rows are those of the last step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from merging.adapter import Adapter, LowRank
from merging.blend import Blend
from server.engine.kernels import Kernel, PlainKernel, can_pack, choose_kernel

IDLE_STEPS = 64
"""An adapter that no row has used for this many steps may be dropped from the slab."""

STEADY_STEPS = 16
"""Stacks that did not change for this many steps are packed, a few in each step."""

PACKED_PER_STEP = 4


def widest_rank(adapter: Adapter) -> int:
    """The largest rank over the adapter's modules: what a step that uses it pays for, at most."""
    return max(factor.rank for factor in adapter.factors.values())


class Stack:
    """Stacked factors of linears that read one input: all ranks of the first, then of the next."""

    def __init__(self, a: torch.Tensor, b: Sequence[torch.Tensor]) -> None:
        """Empty tensors `a` [0, in] and, for each linear, `b` [0, out]."""
        self.a = a
        self.b = tuple(b)
        # for every stacked rank of every linear: its adapter's slot, and that adapter's scale here
        self.slots: list[list[int]] = [[] for _ in b]
        self.scales: list[list[float]] = [[] for _ in b]
        self._take(PlainKernel)

    @property
    def ranks(self) -> list[int]:
        return [len(b) for b in self.b]

    def append(self, factors: Sequence[Mapping[int, LowRank]]) -> None:
        """Add adapters; `factors`: for each linear, by slot."""
        a, b = list(torch.split(self.a, self.ranks)), list(self.b)
        for linear, by_slot in enumerate(factors):
            new = by_slot.values()
            a[linear] = torch.cat([a[linear], *(factor.a.to(self.a) for factor in new)])
            b[linear] = torch.cat([b[linear], *(factor.b.T.to(self.a) for factor in new)])
            for slot, factor in by_slot.items():
                self.slots[linear] += [slot] * factor.rank
                self.scales[linear] += [factor.scale] * factor.rank
        self.a, self.b = torch.cat(a), tuple(b)
        self._take(PlainKernel)

    def pack(self) -> None:
        """Take the fastest kernels, which copy the factors: the plain ones stay, to be appended
        to.
        """
        self._take(choose_kernel)

    def _take(self, make: Callable[[torch.Tensor], Kernel]) -> None:
        """`down`: `A x` of all linears; `up`: for each linear `B y`, None where it has no ranks."""
        self.down = make(self.a)
        self.up = [make(b.T) if len(b) else None for b in self.b]


@dataclass(frozen=True, slots=True)
class ActiveStack:
    """A stack's share of a step: its `coefficients`, float32 [rows, R].

    `unused` [rows, R] is true where a row's blend does not have that rank.
    """

    stack: Stack
    coefficients: torch.Tensor
    unused: torch.Tensor


class Slab:
    """Stacked factors for the linears of one base."""

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        siblings: Sequence[Sequence[str]],
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_rank: int | None = None,
    ) -> None:
        """`modules`: (out_features, in_features) by path, in the order of a blend's columns.
        `siblings`: the same paths, those that read one input together.
        """
        self._shapes = modules
        self._index = {name: index for index, name in enumerate(modules)}
        self._siblings = siblings
        self._dtype, self._device = dtype, device
        self._max_rank = max_rank
        self._clear()

    def _clear(self) -> None:
        self._stacks: dict[int, Stack] = {}
        self._slot_by_digest: dict[str, int] = {}
        self._ranks: list[int] = []
        self._idle_steps: dict[str, int] = {}
        self._changed()

    def _changed(self) -> None:
        """Forget what was made of the stacks."""
        self._gather: _Gather | None = None
        self._last: tuple[Sequence[Blend], dict[int, ActiveStack]] = ((), {})
        self._num_steady_steps = 0
        self._unpacked = list(self._stacks.values())

    @property
    def rank(self) -> int:
        """Summed rank of the stacked adapters."""
        return sum(self._ranks)

    def activate(self, blends: Sequence[Blend]) -> dict[int, ActiveStack]:
        """Stacks by the number of the siblings, for rows that see `blends`, one each; empty if none
        has an adapter.
        """
        adapters = {adapter.digest: adapter for blend in blends for adapter in blend.adapters}
        if not adapters:
            return {}
        self._note_use(adapters)
        if self._is_mostly_idle() or self._would_be_full(adapters.values()):
            self._clear()
        try:
            self._append(self._new(adapters.values()))
        except BaseException:  # half an adapter must not be taken for a whole one
            self._clear()
            raise
        self._pack_some()
        known, active = self._last
        if len(known) != len(blends) or any(a is not b for a, b in zip(known, blends, strict=True)):
            active = self._active(blends)
            self._last = (tuple(blends), active)
        return active

    def _pack_some(self) -> None:
        """Packing all at once would hold up everybody's next token."""
        self._num_steady_steps += 1
        if self._num_steady_steps > STEADY_STEPS and self._unpacked:
            for stack in self._unpacked[-PACKED_PER_STEP:]:
                if can_pack(stack.a):
                    stack.pack()
            del self._unpacked[-PACKED_PER_STEP:]

    def _would_be_full(self, adapters: Iterable[Adapter]) -> bool:
        """Whether idle adapters have to make room for new ones."""
        new = self._new(adapters)
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

    def _new(self, adapters: Iterable[Adapter]) -> list[Adapter]:
        return [adapter for adapter in adapters if adapter.digest not in self._slot_by_digest]

    def _append(self, adapters: Sequence[Adapter]) -> None:
        if not adapters:
            return
        slots = range(len(self._ranks), len(self._ranks) + len(adapters))
        for slot, adapter in zip(slots, adapters, strict=True):
            self._slot_by_digest[adapter.digest] = slot
            self._idle_steps[adapter.digest] = 0
            self._ranks.append(widest_rank(adapter))
        for number, names in enumerate(self._siblings):
            factors = [
                {
                    slot: adapter.factors[name]
                    for slot, adapter in zip(slots, adapters, strict=True)
                    if name in adapter.factors
                }
                for name in names
            ]
            if any(factors):
                self._stack(number).append(factors)
        self._changed()

    def _stack(self, number: int) -> Stack:
        if number not in self._stacks:
            shapes = [self._shapes[name] for name in self._siblings[number]]
            a = self._empty(0, shapes[0][1])
            self._stacks[number] = Stack(a, [self._empty(0, out) for out, _ in shapes])
        return self._stacks[number]

    def _empty(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self._dtype, device=self._device)

    def _active(self, blends: Sequence[Blend]) -> dict[int, ActiveStack]:
        if self._gather is None:
            columns = {
                number: [self._index[name] for name in self._siblings[number]]
                for number in self._stacks
            }
            self._gather = _Gather.of(self._stacks, columns, self._device)
        weights = torch.zeros(len(blends), len(self._ranks), len(self._shapes))
        for row, blend in enumerate(blends):
            if blend.adapters:
                slots = [self._slot_by_digest[adapter.digest] for adapter in blend.adapters]
                weights[row, slots] = blend.coefficients
        coefficients = self._gather.coefficients(weights.to(self._device))
        split = torch.split(coefficients, self._gather.sizes, dim=1)
        unused = torch.split(coefficients == 0, self._gather.sizes, dim=1)
        return {
            number: ActiveStack(stack, *parts)
            for (number, stack), *parts in zip(self._stacks.items(), split, unused, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _Gather:
    """Index of every stacked rank of every linear, to make all coefficients of a step in one
    operation.
    """

    positions: torch.Tensor  # [total] into the flattened [slots, modules]
    scales: torch.Tensor  # [total]
    sizes: list[int]  # ranks of each stack

    @classmethod
    def of(
        cls,
        stacks: Mapping[int, Stack],
        columns: Mapping[int, Sequence[int]],
        device: torch.device,
    ) -> "_Gather":
        """`columns`: of a blend's coefficients, for each linear of each stack."""
        slots: list[int] = []
        modules: list[int] = []
        scales: list[float] = []
        for number, stack in stacks.items():
            for column, ranks in zip(columns[number], stack.ranks, strict=True):
                modules += [column] * ranks
            slots += [slot for by_linear in stack.slots for slot in by_linear]
            scales += [scale for by_linear in stack.scales for scale in by_linear]
        return cls(
            positions=torch.tensor([slots, modules], device=device),
            scales=torch.tensor(scales, device=device),
            sizes=[sum(stack.ranks) for stack in stacks.values()],
        )

    def coefficients(self, weights: torch.Tensor) -> torch.Tensor:
        """`weights` [rows, slots, modules] -> [rows, total], float32."""
        return weights[:, self.positions[0], self.positions[1]] * self.scales
