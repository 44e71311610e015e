"""Pieces of tensors: they cover every element once, and scratch is each thread's own."""

from threading import Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.pieces import Scratch, matrix_shape, pieces_of, split
from merging.workers import Workers, compute_alone


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 100))
def test_pieces_cover_a_matrix_in_order(num_rows: int, num_columns: int, size: int) -> None:
    """Without gaps, none larger than asked; their rows and columns are those of their elements."""
    matrix = torch.arange(num_rows * num_columns).reshape(num_rows, num_columns)
    pieces = pieces_of((num_rows, num_columns), size)
    assert all(0 < piece.size <= size for piece in pieces)
    starts = [piece.start for piece in pieces]
    assert starts == [0, *(piece.start + piece.size for piece in pieces)][: len(starts)]
    for piece, part in zip(pieces, split(matrix, pieces), strict=True):
        own = matrix[piece.rows, piece.columns]
        assert own.shape == piece.shape
        assert part.equal(own.reshape(-1))


@pytest.mark.parametrize(
    ("shape", "matrix"), [((), (1, 1)), ((5,), (1, 5)), ((2, 3), (2, 3)), ((2, 3, 4), (6, 4))]
)
def test_rows_go_along_the_last_dimension(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    """A vector is one row, a number one element."""
    assert matrix_shape(shape) == matrix


def test_scratch_is_kept_and_is_each_threads_own() -> None:
    """One thread gets the same memory again, uses have different memory, and so have threads."""
    scratch, pointers = Scratch(), []
    first = scratch.rows("a", 2, 10)
    assert first.all.shape == (2, 10)
    assert first.each[1].data_ptr() == first.all[1].data_ptr()
    assert scratch.rows("a", 2, 10) is first
    assert scratch.row("a", 5).data_ptr() == first.all.data_ptr()
    assert scratch.row("b", 5).data_ptr() != first.all.data_ptr()
    thread = Thread(target=lambda: pointers.append(scratch.row("a", 5).data_ptr()))
    thread.start()
    thread.join()
    assert pointers != [first.all.data_ptr()]


def test_workers_raise_what_a_task_raised() -> None:
    """And take no more tasks; what yields is on the caller's thread."""
    done: list[int] = []

    def task(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        done.append(number)

    with pytest.raises(ValueError, match="three"), Workers(2) as workers:
        for _ in workers.run((lambda i=i: task(i)) for i in range(100)):
            pass
    assert len(done) < 20


def test_a_thread_that_computes_alone_leaves_others_as_they_are() -> None:
    """OpenMP's number of threads is that thread's own."""
    found = []

    def work() -> None:
        compute_alone()
        found.append(torch.get_num_threads())

    before = torch.get_num_threads()
    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]
    assert torch.get_num_threads() == before
