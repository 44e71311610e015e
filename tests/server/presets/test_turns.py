"""Turns by name."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.presets.turns import Turns


def test_one_at_a_time_for_a_name():
    """Blocks of one name never overlap, whatever the number of threads."""
    turns, inside, most = Turns(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with turns.of("tutor"):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(50)))
    assert most == 1


def test_names_do_not_wait_for_each_other():
    """Another name's turn is free."""
    turns = Turns()
    with turns.of("one"), turns.of("two"):
        pass


def test_a_failure_gives_the_turn_back():
    """A block that fails lets the next one in, and no name is remembered for nothing."""
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.of("tutor"):
        raise ZeroDivisionError
    with turns.of("tutor"):
        assert len(turns._locks) == 1
    assert turns._locks == {}
