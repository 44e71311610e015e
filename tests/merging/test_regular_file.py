"""What is no regular file, or is too large, is refused at once. A test that hangs has failed."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from merging.errors import SourceError
from merging.regular_file import (
    MAX_BYTES,
    check_files,
    check_not_sparse,
    is_there,
    open_file,
    read_file,
)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


MAKE: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a socket": bind,
    "a device": lambda path: os.symlink("/dev/zero", path),
}
"""How to put each kind of thing where a file should be."""


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without opening it, and by what it is."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("config.json")
    MAKE[kind](path)
    for read in (open_file, read_file, is_there):
        with pytest.raises(OSError, match=f"it is {kind}, and not a regular file"):
            read(path)
    with pytest.raises(SourceError, match=f"config.json cannot be read: it is {kind}"):
        check_files(tmp_path)


def test_a_file_is_read(tmp_path: Path) -> None:
    """Also through a link; what is not there is not there."""
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_file(tmp_path / "link") == b"content"
    assert is_there(tmp_path / "link")
    assert not is_there(tmp_path / "y")


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    """It is no missing file: a download was moved, or cut off."""
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match=r"a link to .*gone, which is not there"):
        is_there(tmp_path / "link")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Neither one of any size on a full disk, nor one that grows while it is read."""
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)
    with pytest.raises(OSError, match=f"at most {MAX_BYTES:,} are read"):
        read_file(tmp_path / "config.json")
    with pytest.raises(
        SourceError, match=r"config\.json cannot be read: it has 1,099,511,627,776 bytes"
    ):
        check_files(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "train.json")
    (tmp_path / "tokenizer").mkdir()
    check_files(tmp_path)  # nobody reads these
    (tmp_path / "y").write_bytes(b"12345")
    with pytest.raises(OSError, match="it has 5 bytes, and at most 4"):
        read_file(tmp_path / "y", 4)


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """One that was written is not, whatever is in it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"start")
    with open_file(path) as file:
        check_not_sparse(file)
    os.truncate(path, 1 << 40)
    with open_file(path) as file:
        file.read(2)
        with pytest.raises(OSError, match="it is sparse"):
            check_not_sparse(file)
    path.write_bytes(bytes(1 << 26))
    with open_file(path) as file:
        check_not_sparse(file)
        assert file.tell() == 0
