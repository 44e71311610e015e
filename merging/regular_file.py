"""Opening files that others made: only regular ones, of a size that they may have.

A FIFO in place of a file would hang whoever opens it, a device may never end, and a sparse file of
any size takes no room on the disk. All of them are an OSError here, at once, in words.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from io import BufferedReader
from pathlib import Path
from typing import Final

from merging.errors import SourceError

MAX_BYTES: Final = 1 << 28
"""Of what is read whole: tokenizers are the largest, with some 30 MB."""

MAX_YAML: Final = 1 << 22
"""Of what people write; YAML is read slowly."""

MIN_SPARSE: Final = 1 << 26
MAX_HOLES: Final = 0.99
"""A larger file with more holes than that is no file of weights."""

KINDS: Final[Mapping[str, Callable[[int], bool]]] = {
    "a folder": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}

READ_WHOLE: Final = (
    *("*config.json", "*.index.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template*", "*.jinja", "*.model", "*.tiktoken"),
)
WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf")
"""Names of the files that a model or an adapter is read from, by us or by transformers and PEFT."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; OSError for what is none, without opening it."""
    _check(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor))  # it may have been replaced meanwhile
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file; OSError for what is none, or is larger than `limit` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
        if max(size, len(content)) > limit:
            raise _too_large(max(size, len(content)), limit)
        return content


def is_there(path: Path) -> bool:
    """Whether there is a regular file; OSError for anything else of the name."""
    try:
        _check(os.stat(path))
    except FileNotFoundError:
        if os.path.islink(path):
            told = f"it is a link to {os.readlink(path)}, which is not there"
            raise OSError(errno.ENOENT, told) from None
        return False
    return True


def check_not_sparse(file: BufferedReader) -> None:
    """OSError if an open file is large and holds next to nothing. Its position is kept."""
    descriptor = file.fileno()
    size, position = os.fstat(descriptor).st_size, file.tell()
    if size < MIN_SPARSE:
        return
    held = sum(end - start for start, end in _extents(descriptor, size))
    file.seek(position)
    if held < (1 - MAX_HOLES) * size:
        raise OSError(
            errno.EINVAL, f"it is sparse: of {size:,} bytes only {held:,} were ever written"
        )


def check_files(folder: Path) -> None:
    """Look at all files of a model or an adapter before others open them. SourceError that names
    each which is no regular file, or too large to be what its name says.
    """
    reasons = []
    for path in (*_entries(folder), *_entries(folder / "additional_chat_templates")):
        try:
            is_folder = path.is_dir() and not path.suffix  # tokenizer/ is no tokenizer.json
            is_whole = not is_folder and any(fnmatch(path.name, p) for p in READ_WHOLE)
            if is_whole and is_there(path):
                _check_size(path)
            elif any(fnmatch(path.name, pattern) for pattern in WEIGHTS):
                is_there(path)
        except OSError as error:
            reasons.append(f"{path} cannot be read: {error.strerror}")
    if reasons:
        raise SourceError(reasons)


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _too_large(size, MAX_BYTES)


def _too_large(size: int, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {limit:,} are read")


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for kind, fits in KINDS.items() if fits(found.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and not a regular file")


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data. A disk that does not know its holes says that all of it is."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # holes cannot be told on this disk
                yield end, size
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # whoever needs the folder says why
        return []
