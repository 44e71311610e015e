"""What variants stay in memory, and what goes first."""

from dataclasses import dataclass

import pytest

from server.presets.shelf import Built, Need, Shelf


@dataclass(eq=False)
class Weights:
    digest: str
    num_bytes: int = 10
    kv_bytes: int = 0


class Cache:
    """Has as much as it is allowed."""

    num_bytes = 0

    def shrink(self, max_bytes: int) -> None:
        self.num_bytes = max_bytes


def built(digest: str, num_bytes: int = 10) -> Built:
    return Built(Weights(digest, num_bytes), "ties", {"merge": 1.0})  # type: ignore[arg-type]


@pytest.fixture
def shelf() -> Shelf:
    """Room for three of ten bytes; a, b and c are there."""
    shelf = Shelf(30, Cache())
    for digest in "abc":
        shelf.put(built(digest))
    return shelf


def names(shelf: Shelf) -> str:
    return "".join(sorted(each.digest for each in shelf))


def test_the_one_used_longest_ago_goes(shelf):
    """Room for a new one is made by the one that nobody asked for the longest."""
    assert shelf.find("a") is not None
    shelf.put(built("d"))
    assert names(shelf) == "acd"
    assert shelf.num_evicted == 1


def test_looking_is_no_use(shelf):
    """To tell of a variant does not keep it."""
    assert shelf.peek("a") is not None
    shelf.put(built("d"))
    assert names(shelf) == "bcd"


def test_as_many_go_as_must(shelf):
    """A large one takes the place of several."""
    shelf.put(built("d", 25))
    assert names(shelf) == "d"
    assert shelf.num_evicted == 3


def test_pinned_ones_stay(shelf):
    """A pinned variant never goes, however long ago it was used."""
    shelf.serve("ab", "a")
    shelf.put(built("d", 20))
    assert names(shelf) == "ad"


def test_held_ones_stay_and_may_be_too_many(shelf):
    """What an edit holds stays until it is released; then the budget holds again."""
    for digest in "abc":
        shelf.hold(digest)
    shelf.put(built("d"))
    assert (names(shelf), shelf.num_bytes) == ("abcd", 40)
    shelf.release(["b"])
    assert names(shelf) == "acd"


def test_what_was_served_goes_when_it_is_replaced(shelf):
    """The variant of a replaced revision leaves the memory at once; one asked for by hand stays."""
    shelf.serve("ab", "")
    shelf.serve("b", "")
    assert names(shelf) == "bc"
    assert shelf.num_evicted == 0


def test_what_is_held_goes_when_it_is_released(shelf):
    """A replaced variant that an edit holds still stays until the edit ends."""
    shelf.serve("a", "")
    shelf.hold("a")
    shelf.serve("", "")
    assert "a" in shelf
    shelf.release(["a"])
    assert "a" not in shelf


def test_what_comes_back_stays(shelf):
    """A variant that is served again before it could go stays."""
    shelf.serve("a", "")
    shelf.hold("a")
    shelf.serve("", "")
    shelf.serve("a", "")
    shelf.release(["a"])
    assert "a" in shelf


def test_what_is_replaced_goes_first():
    """When an edit ends, its old variant makes the room, not its new one, in whatever order."""
    for order in (["new", "old"], ["old", "new"]):
        shelf = Shelf(15)
        shelf.serve(["old"], [])
        for digest in order:
            shelf.hold(digest)
        for digest in ("old", "new"):
            shelf.put(built(digest))
        shelf.serve(["new"], [])
        shelf.release(order)
        assert (names(shelf), shelf.num_evicted) == ("new", 0)


def test_what_nobody_serves_goes_first(shelf):
    """A variant that a preset serves is kept before one that was only asked for, later."""
    shelf.serve("a", "")
    shelf.put(built("d"))
    assert names(shelf) == "acd"
    shelf.put(built("e", 20))
    assert names(shelf) == "ae"


@pytest.mark.parametrize(
    ("num_bytes", "replacing", "fits"),
    [(10, (), True), (11, (), False), (20, ("a",), True), (21, ("a",), False), (30, "ab", True)],
)
def test_what_can_never_fit_is_known(shelf, num_bytes, replacing, fits):
    """Beside the pinned variants there must be room; those that are replaced do not count."""
    shelf.serve("ab", "ab")
    shortage = shelf.shortage("d", Need(num_bytes), replacing)
    assert (shortage is None) == fits


def test_the_shortage_has_the_numbers():
    """A refusal says what is needed, what is taken, and which setting bounds it."""
    shelf = Shelf(3 << 20)
    shelf.put(built("a", 2 << 20))
    shelf.serve("a", "a")
    shortage = shelf.shortage("b", Need(5 << 19))
    assert shortage is not None
    for part in ("2.5 MiB", "2.0 MiB of pinned", "3.0 MiB in all", "--variant-memory"):
        assert part in shortage


def test_nothing_goes_for_an_edit_that_may_be_refused(shelf):
    """What an edit built and holds makes nobody go before it is released; if it does not serve
    then, it goes first.
    """
    shelf.serve("abc", "")
    shelf.hold("d")
    shelf.put(built("d"))
    assert names(shelf) == "abcd"
    shelf.release(["d"])
    assert names(shelf) == "abc"


def test_what_yields_takes_only_what_nobody_serves(shelf):
    """A yielding variant takes the place of what is not served, or has none."""
    shelf.serve("ab", "")
    shelf.put(built("d"), yielding=True)
    assert names(shelf) == "abd"
    shelf.put(built("e", 11), yielding=True)
    assert names(shelf) == "ab"


def test_what_went_counts_while_somebody_has_it(shelf):
    """A variant that was evicted or replaced is leaving until the last request on it ends, and a
    new one has no room before.
    """
    running = [each.variant for each in shelf]
    shelf.serve("a", "")
    shelf.serve("", "")
    shelf.put(built("d", 20))
    assert (names(shelf), shelf.leaving_bytes) == ("cd", 20)
    assert shelf.crowding("e", Need(10)) is None
    crowding = shelf.crowding("e", Need(11))
    assert crowding is not None
    assert "requests still run on" in crowding
    assert "--variant-memory" in crowding
    del running[0]
    assert shelf.leaving_bytes == 10
    assert shelf.crowding("e", Need(11)) is None
    running.clear()
    assert shelf.leaving_bytes == 0


def test_keys_and_values_count_too():
    """The KV cache of layers beyond the base's is in the budget, and in the refusal by itself."""
    shelf = Shelf(3 << 20)
    assert shelf.shortage("a", Need(1 << 20, 2 << 20)) is None
    shortage = shelf.shortage("a", Need(1 << 20, 5 << 19))
    assert shortage is not None
    for part in ("weights need 1.0 MiB", "layers beyond the base's 2.5 MiB", "3.0 MiB in all"):
        assert part in shortage
    shelf.put(Built(Weights("a", 1 << 20, 1 << 20), "ties", {}))  # type: ignore[arg-type]
    assert shelf.num_bytes == 2 << 20


def test_the_cache_takes_what_is_left(shelf):
    """Caches of the builds are inside the budget, behind the variants."""
    assert shelf.cache.num_bytes == 0
    shelf.serve("ab", "")
    shelf.serve("", "")
    shelf.expect(5)
    assert shelf.cache.num_bytes == 15
