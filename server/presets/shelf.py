"""The shelf of built variants: what is kept in memory, and what goes first when it gets short."""

import weakref
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from server.engine.variant import Variant


class Cache(Protocol):
    """What the builds keep for the next one; it takes what the variants leave of the budget."""

    @property
    def num_bytes(self) -> int:
        """Bytes in use."""

    def shrink(self, max_bytes: int) -> None:
        """Keep at most so many bytes, now and from now on."""


class NoCache:
    """Keeps nothing."""

    num_bytes = 0

    def shrink(self, max_bytes: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a variant: of its weights, and of keys and values in layers beyond the base's."""

    weights: int
    kv: int = 0

    @property
    def num_bytes(self) -> int:
        """Both."""
        return self.weights + self.kv

    def __str__(self) -> str:
        kv = f", and the KV cache of its layers beyond the base's {_mib(self.kv)}"
        return f"its weights need {_mib(self.weights)}" + (kv if self.kv else "")


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A variant, and how it was built: seconds by phase."""

    variant: Variant
    method: str
    seconds_by_phase: Mapping[str, float]

    @property
    def digest(self) -> str:
        return self.variant.digest

    @property
    def num_bytes(self) -> int:
        """Its weights, and the keys and values of its layers beyond the base's."""
        return self.variant.num_bytes + self.variant.kv_bytes

    @property
    def seconds(self) -> float:
        return sum(self.seconds_by_phase.values())


class Shelf:
    """Variants by digest under a budget in bytes. Not locked: its owner has a lock.

    What nobody serves goes first, and then what was asked for longest ago. Pinned variants never
    go. Held ones, of edits that are under way, do not go either, so an edit may exceed the budget
    until it is published: the revision that serves and the new one are both there.

    Requests keep what they run on by reference, whatever happens here: until they end it is
    leaving, and new variants have to wait for its room.
    """

    def __init__(self, budget: int, cache: Cache | None = None) -> None:
        self.budget = budget
        self.cache = NoCache() if cache is None else cache  # an empty one is falsy
        self.num_evicted = 0
        self._built: OrderedDict[str, Built] = OrderedDict()  # by digest, last used last
        self._held: Counter[str] = Counter()
        self._used: frozenset[str] = frozenset()
        self._pinned: frozenset[str] = frozenset()
        self._retired: set[str] = set()
        self._leaving: tuple[tuple[weakref.ref[Variant], int], ...] = ()  # with their bytes

    def __len__(self) -> int:
        return len(self._built)

    def __contains__(self, digest: object) -> bool:
        return digest in self._built

    @property
    def num_bytes(self) -> int:
        """Bytes of all variants here."""
        return sum(built.num_bytes for built in self._built.values())

    @property
    def leaving_bytes(self) -> int:
        """Bytes of variants that went, and that requests still run on. On any thread."""
        return sum(num_bytes for variant, num_bytes in self._leaving if variant() is not None)

    def peek(self, digest: str) -> Built | None:
        """A variant, without counting as its use."""
        return self._built.get(digest)

    def find(self, digest: str) -> Built | None:
        """A variant; it is the one used last now."""
        built = self._built.get(digest)
        if built is not None:
            self._built.move_to_end(digest)
        return built

    def put(self, built: Built, *, yielding: bool = False) -> None:
        """Add a variant, and make others go where there is no room for all.

        While it is held none goes yet: its edit may be refused. `yielding`: rather than one that is
        served it goes itself.
        """
        self._built[built.digest] = built
        self._built.move_to_end(built.digest)
        if built.digest not in self._held:
            self.make_room(but=self._used if yielding else {built.digest})

    def shortage(self, digest: str, need: Need, replacing: Collection[str] = ()) -> str | None:
        """Why a variant that needs so much can never be kept; None if it can.

        `replacing`: pinned variants whose place it takes.
        """
        pinned = self._pinned_bytes(digest, replacing)
        if need.num_bytes + pinned <= self.budget:
            return None
        beside = f" beside the {_mib(pinned)} of pinned presets" if pinned else ""
        return (
            f"{need}{beside}, and merged weights may take {_mib(self.budget)} in all "
            "(--variant-memory)"
        )

    def crowding(self, digest: str, need: Need, replacing: Collection[str] = ()) -> str | None:
        """Why a variant that needs so much has no room yet; None if it has."""
        leaving = self.leaving_bytes
        room = self.budget - self._pinned_bytes(digest, replacing) - leaving
        if not leaving or need.num_bytes <= room:
            return None
        return (
            f"{need}, and requests still run on {_mib(leaving)} of merged weights that were "
            f"replaced or evicted, of {_mib(self.budget)} in all (--variant-memory)"
        )

    def spare_shortage(self, num_bytes: int) -> str | None:
        """Why so many bytes have no place beside all that is kept, with as many left free; None if
        they have.
        """
        spare = self.budget - self.num_bytes - self.leaving_bytes
        if 2 * num_bytes <= max(spare, 0):
            return None
        return (
            f"that takes {_mib(num_bytes)} of merged weights and as much left free, and of "
            f"{_mib(self.budget)} in all (--variant-memory) {_mib(max(spare, 0))} are free: start "
            "the server with more --variant-memory"
        )

    def expect(self, num_bytes: int) -> None:
        """A variant of so many bytes is being built: what builds keep gives way already."""
        self.cache.shrink(max(0, self.budget - self.num_bytes - self.leaving_bytes - num_bytes))

    def pinned_shortage(self, after: Mapping[str, Need], before: Mapping[str, Need]) -> str | None:
        """Why these variants cannot all be pinned; None if they can, or take no more than `before`.

        Both map digests to what is planned, which counts where the variant is not here.
        """
        needed = self._bytes_of(after)
        if needed <= max(self.budget, self._bytes_of(before)):
            return None
        return (
            f"the weights of all pinned presets would need {_mib(needed)}, and merged weights may "
            f"take {_mib(self.budget)} in all (--variant-memory)"
        )

    def make_room(self, *, but: Collection[str] = ()) -> None:
        """Make variants go until the rest fits: first those that no preset or source serves, and of
        each kind those used longest ago.
        """
        may_go = [d for d in self._built if d not in but and self._may_go(d)]
        for digest in sorted(may_go, key=self._used.__contains__):  # stable: the order stays
            if self.num_bytes <= self.budget:
                break
            self._let_go(digest)
            self.num_evicted += 1
        self.expect(0)

    def serve(self, used: Collection[str], pinned: Collection[str]) -> None:
        """Take note of the variants that presets serve now; those that they served before go."""
        self._retired |= self._used - frozenset(used)
        self._used, self._pinned = frozenset(used), frozenset(pinned)
        self._retired -= self._used
        self._drop_retired()

    def hold(self, digest: str) -> None:
        """Keep a variant, there already or not yet, until it is released as often as held."""
        self._held[digest] += 1

    def release(self, digests: Collection[str]) -> None:
        """Undo one `hold` of each. What was replaced goes before room is made: it may be enough."""
        self._held.subtract(digests)
        self._held = +self._held
        self._drop_retired()
        self.make_room()

    def __iter__(self) -> Iterator[Built]:
        return iter(self._built.values())

    def _bytes_of(self, planned: Mapping[str, Need]) -> int:
        return sum((self._built.get(d) or need).num_bytes for d, need in planned.items())

    def _may_go(self, digest: str) -> bool:
        return digest not in self._pinned and digest not in self._held

    def _drop_retired(self) -> None:
        for digest in self._retired - self._held.keys():
            self._retired.discard(digest)
            if digest in self._built:
                self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        built = self._built.pop(digest)
        present = (entry for entry in self._leaving if entry[0]() is not None)
        self._leaving = (*present, (weakref.ref(built.variant), built.num_bytes))

    def _pinned_bytes(self, digest: str, replacing: Collection[str]) -> int:
        """Bytes of the pinned variants but these."""
        kept = self._pinned - {digest, *replacing}
        return sum(built.num_bytes for d, built in self._built.items() if d in kept)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
