"""The shelf of built variants: what is kept in memory, and what goes first when it gets short."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
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
        return self.variant.num_bytes

    @property
    def seconds(self) -> float:
        return sum(self.seconds_by_phase.values())


class Shelf:
    """Variants by digest under a budget in bytes. Not locked: its owner has a lock.

    What nobody serves goes first, and then what was asked for longest ago. Pinned variants never
    go. Held ones, of edits that are under way, do not go either, so an edit may exceed the budget
    until it is published: the revision that serves and the new one are both there. Requests keep
    what they run on by reference, whatever happens here.
    """

    def __init__(self, budget: int, cache: Cache | None = None) -> None:
        self.budget = budget
        self.cache = cache or NoCache()
        self.num_evicted = 0
        self._built: OrderedDict[str, Built] = OrderedDict()  # by digest, last used last
        self._held: Counter[str] = Counter()
        self._used: frozenset[str] = frozenset()
        self._pinned: frozenset[str] = frozenset()
        self._retired: set[str] = set()

    def __len__(self) -> int:
        return len(self._built)

    def __contains__(self, digest: object) -> bool:
        return digest in self._built

    @property
    def num_bytes(self) -> int:
        """Bytes of all variants here."""
        return sum(built.num_bytes for built in self._built.values())

    def peek(self, digest: str) -> Built | None:
        """A variant, without counting as its use."""
        return self._built.get(digest)

    def find(self, digest: str) -> Built | None:
        """A variant; it is the one used last now."""
        built = self._built.get(digest)
        if built is not None:
            self._built.move_to_end(digest)
        return built

    def put(self, built: Built) -> None:
        """Add a variant, and make others go where there is no room for all."""
        self._built[built.digest] = built
        self._built.move_to_end(built.digest)
        self.make_room(0, but=built.digest)

    def shortage(self, digest: str, num_bytes: int, replacing: Collection[str] = ()) -> str | None:
        """Why a variant of so many bytes can never be kept; None if it can.

        `replacing`: pinned variants whose place it takes.
        """
        kept = self._pinned - {digest, *replacing}
        pinned = sum(built.num_bytes for d, built in self._built.items() if d in kept)
        if num_bytes + pinned <= self.budget:
            return None
        beside = f" beside the {_mib(pinned)} of pinned presets" if pinned else ""
        return (
            f"its weights need {_mib(num_bytes)}{beside}, and merged weights may take "
            f"{_mib(self.budget)} in all (--variant-memory)"
        )

    def pinned_shortage(self, after: Mapping[str, int], before: Mapping[str, int]) -> str | None:
        """Why these variants cannot all be pinned; None if they can, or take no more than `before`.

        Both map digests to planned bytes, which count where the variant is not here.
        """
        needed = self._bytes_of(after)
        if needed <= max(self.budget, self._bytes_of(before)):
            return None
        return (
            f"the weights of all pinned presets would need {_mib(needed)}, and merged weights may "
            f"take {_mib(self.budget)} in all (--variant-memory)"
        )

    def make_room(self, num_bytes: int, *, but: str = "") -> None:
        """Make variants go until `num_bytes` more fit: first those that no preset or source
        serves, and of each kind those used longest ago.
        """
        room = self.budget - num_bytes
        total = self.num_bytes
        may_go = [d for d in self._built if d != but and self._may_go(d)]
        for digest in sorted(may_go, key=self._used.__contains__):  # stable: the order stays
            if total <= room:
                break
            total -= self._built.pop(digest).num_bytes
            self.num_evicted += 1
        self.cache.shrink(max(0, room - total))

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
        self.make_room(0)

    def __iter__(self) -> Iterator[Built]:
        return iter(self._built.values())

    def _bytes_of(self, planned: Mapping[str, int]) -> int:
        here = {digest: self._built[digest].num_bytes for digest in planned if digest in self}
        return sum({**planned, **here}.values())

    def _may_go(self, digest: str) -> bool:
        return digest not in self._pinned and digest not in self._held

    def _drop_retired(self) -> None:
        for digest in self._retired - self._held.keys():
            self._retired.discard(digest)
            with suppress(KeyError):
                del self._built[digest]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
