"""The memory of what was made last."""

import threading

import pytest

from server.presets.recent import Recent


class Maker:
    """Makes values, and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, key: str):
        def make() -> str:
            self.made.append(key)
            return key.upper()

        return make


def test_a_value_is_made_once():
    """What is remembered is not made again."""
    recent, maker = Recent[str, str](2), Maker()
    assert [recent.get("a", maker("a")) for _ in range(3)] == ["A", "A", "A"]
    assert maker.made == ["a"]


def test_the_least_recently_used_is_forgotten():
    """Beyond the capacity the value that was not asked for longest goes."""
    recent, maker = Recent[str, str](2), Maker()
    for key in ("a", "b", "a", "c", "a", "b"):
        recent.get(key, maker(key))
    assert maker.made == ["a", "b", "c", "b"]


def test_what_takes_memory_makes_others_go():
    """Of values with bytes of their own only as many are kept as fit, and the last one anyway."""
    recent, maker = Recent[str, str](9, max_bytes=5, num_bytes=len), Maker()
    for key in ("a", "bb", "ccc", "bb", "a", "dddddd", "dddddd"):
        recent.get(key, maker(key))
    assert maker.made == ["a", "bb", "ccc", "a", "dddddd"]


def test_values_can_be_dropped():
    """What is unwanted is made again, and the rest is remembered."""
    recent, maker = Recent[str, str](4), Maker()
    for key in ("a", "b"):
        recent.get(key, maker(key))
    recent.drop(lambda value: value == "A")
    for key in ("a", "b"):
        recent.get(key, maker(key))
    assert maker.made == ["a", "b", "a"]


def test_failures_are_not_remembered():
    """A maker that raises is asked again."""
    recent = Recent[str, str](2)

    def fail() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recent.get("a", fail)
    assert recent.get("a", lambda: "A") == "A"


def test_many_threads():
    """Threads that ask at once all get the right value, and the capacity holds."""
    recent, wrong = Recent[int, int](8), []

    def ask() -> None:
        for number in range(500):
            key = number % 20
            if recent.get(key, lambda key=key: key * key) != key * key:
                wrong.append(key)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    values: list[int] = []
    recent.drop(lambda value: bool(values.append(value)))
    assert len(values) == 8
