"""A safetensors file that is written in place: its tensors are views of the mapped file.

The format is: eight bytes with the length of the header, little-endian; the header, JSON padded
with blanks to a multiple of eight; the tensors, one after the other without gaps
(https://huggingface.co/docs/safetensors).
"""

import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.checkpoint import DTYPES
from merging.errors import NO_ROOM

DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """Space on the disk for `tensors`, all zeros at first.

    The whole file is allocated at once, so that a disk without room is found before any work is
    done, and never by a signal in the middle of it. Dirty pages are the kernel's to write out: what
    was written does not stay in this process's memory beyond `release`.
    """

    def __init__(
        self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Raises OSError, as the disk gives it; where there is no room, with what is needed."""
        # Wide elements first: then each tensor lies at a multiple of its element's size.
        specs = sorted(tensors, key=lambda spec: -spec.dtype.itemsize)
        header, self._offsets, size = _layout(specs, metadata or {"format": "pt"})
        self._specs = {spec.name: spec for spec in specs}
        with path.open("w+b") as file:
            with asking_for(size, path.parent):
                os.posix_fallocate(file.fileno(), 0, size)
            file.write(header)
            file.flush()
            self._map = mmap.mmap(file.fileno(), size)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`: what is written into it is in the file."""
        spec = self._specs[name]
        if not spec.num_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        flat = torch.frombuffer(
            self._map, dtype=spec.dtype, count=math.prod(spec.shape), offset=self._offsets[name]
        )
        return flat.view(spec.shape)

    def release(self) -> None:
        """Give the memory of what was written to the kernel; nothing is lost, at any time."""
        self._map.madvise(mmap.MADV_DONTNEED)  # of a shared mapping: the pages stay with the file

    def flush(self) -> None:
        """Put everything on the disk; raises OSError if that does not work."""
        self._map.flush()
        self.release()


@contextmanager
def asking_for(num_bytes: int, folder: Path) -> Iterator[None]:
    """Where the disk of a folder has no room in the block, the OSError says how many bytes were
    asked for, and how many were free before.
    """
    free = shutil.disk_usage(folder).free
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        told = f"{os.strerror(error.errno)}: {num_bytes:,} bytes are needed, and {free:,} are free"
        raise OSError(error.errno, told) from error


def _layout(
    specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> tuple[bytes, Mapping[str, int], int]:
    """The header with its length before it, where each tensor starts, and the size of the file."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begins, end = {}, 0
    for spec in specs:
        begins[spec.name] = end
        end += spec.num_bytes
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begins[spec.name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: start + begin for name, begin in begins.items()}, start + end
