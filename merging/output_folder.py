"""A folder that appears whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merging.errors import NO_ROOM, OutputError


@contextmanager
def output_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, which gets the name `target` when the block ends.

    It lies beside `target`, under a hidden name. If the block raises, it is removed; if the process
    is killed, it stays there, and nothing is under the name `target`.

    Raises OutputError if `target` is there and is not an empty folder, and for what the disk
    refuses: no space, no permission.
    """
    target = Path(os.path.abspath(target.expanduser()))
    check_target(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
        try:
            yield unfinished
            unfinished.chmod(0o755)  # mkdtemp's is for its owner alone
            _sync(unfinished)
            os.rename(unfinished, target)  # fails if `target` has been filled meanwhile
            _sync_path(target.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def check_target(target: Path) -> None:
    """Raise OutputError unless `target` is free: absent, or an empty folder."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} is not a folder: name one that does not exist yet")
    try:
        if target.is_dir() and any(target.iterdir()):
            raise OutputError(
                f"{target} is not empty, and nothing is overwritten: name another folder"
            )
    except OSError as error:
        raise OutputError(f"{target} cannot be read: {error.strerror}") from error


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutputError(
                f"{target} cannot be written: {error.strerror}; nothing is left there: free some "
                "space or raise the limit, or name a folder on another disk"
            ) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputError(f"{target} was filled meanwhile: name another folder") from error
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Put a folder and its files on the disk, so that the rename cannot come before them."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
