"""Memory that is freed goes back to the system when it is asked for."""

import ctypes
from pathlib import Path

import pytest
import torch

from server.engine.memory import give_back

PIECE = 1 << 14  # float32: 64 KiB, which the C library takes from its heap
MIB = 2**20


def own_bytes() -> int:
    """The memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's alone")
def test_freed_pieces_are_given_back() -> None:
    """Pieces that were freed between others that stay are the system's again."""
    pieces = [torch.ones(PIECE) for _ in range(1024)]
    kept = pieces[::8]
    full = own_bytes()
    del pieces
    assert own_bytes() > full - 8 * MIB, "the C library keeps them"
    give_back()
    assert own_bytes() < full - 48 * MIB
    assert all(bool((piece == 1).all()) for piece in kept)
