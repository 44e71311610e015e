"""A full checkpoint, opened: its safetensors files mapped read-only, and watched for changes."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from merging.checkpoint import (
    DTYPES,
    Progress,
    TensorEntry,
    checkpoint_digest,
    tensor_entries,
)
from merging.errors import SourceError
from merging.vocabulary import VocabularyDifference


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file changed: its size, its time of change in ns, and its inode."""

    size: int
    modified: int
    inode: int


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointWeights:
    """The tensors of a checkpoint's folder, as views of its mapped files.

    `shapes` is in the model's order: by name, numbers as numbers. The mapping is private: nothing
    can be written to the files through it. `digest` is that of the content when it was opened:
    `tensors_digest`, but for a source whose `vocabulary` is not the base's, which is in it too.
    """

    folder: Path
    digest: str
    tensors_digest: str
    shapes: Mapping[str, tuple[int, ...]]
    num_bytes: int
    entries: Mapping[str, TensorEntry]
    _states: Mapping[Path, FileState]
    _mapped: Mapping[Path, torch.Tensor]  # uint8 [size of the file]
    vocabulary: VocabularyDifference | None = None
    _views: dict[str, torch.Tensor] = field(init=False, default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype, a view of the file: do not write to it.

        Raises SourceError if there is none of the name, or if its file changed since it was opened.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise SourceError(f"{self.folder} has no tensor named {name}")
        self.check(name)
        view = self._views.get(name)
        if view is None:
            data = self._mapped[entry.path][entry.offset : entry.offset + entry.num_bytes]
            dtype = DTYPES[entry.dtype]
            if entry.offset % dtype.itemsize:
                return data.clone().view(dtype).view(entry.shape)  # a view would not be aligned
            view = self._views[name] = data.view(dtype).view(entry.shape)
        return view

    def check(self, name: str) -> None:
        """Raises SourceError if the file of a tensor changed since it was opened."""
        if problem := self._problem(self.entries[name].path):
            raise SourceError(problem)

    def check_unchanged(self) -> None:
        """Raises SourceError that names every file changed, replaced or removed since opening."""
        if problems := [problem for path in self._states if (problem := self._problem(path))]:
            raise SourceError(problems)

    def _problem(self, path: Path) -> str | None:
        try:
            changed = file_state(path) != self._states[path]
        except SourceError as error:
            return f"{error}, and it could when the checkpoint was registered; put it back"
        if not changed:
            return None
        return (
            f"{path} changed since the checkpoint was registered; "
            "register the folder again, under a new name or in place of the old"
        )


def open_checkpoint(folder: Path, progress: Progress | None = None) -> CheckpointWeights:
    """Map a folder of safetensors, one file or shards, and hash its content.

    `progress` hears of the bytes hashed. Memory use does not grow with the model: pages are read
    when they are used, and the system may drop them again. Raises SourceError as `tensor_entries`
    does, and if a file changes meanwhile. NaN and infinities are found by those who read them.
    """
    mapped = map_checkpoint(folder, "")
    digest = checkpoint_digest(folder, progress)
    mapped.check_unchanged()
    return replace(mapped, digest=digest, tensors_digest=digest)


def map_checkpoint(folder: Path, digest: str) -> CheckpointWeights:
    """The same without hashing it, for those who know its digest or need none."""
    entries = tensor_entries(folder)
    files = sorted({entry.path for entry in entries.values()})
    states = {path: file_state(path) for path in files}
    return CheckpointWeights(
        folder=folder,
        digest=digest,
        tensors_digest=digest,
        shapes={name: entries[name].shape for name in sorted(entries, key=natural_order)},
        num_bytes=sum(entry.num_bytes for entry in entries.values()),
        entries=entries,
        _states=states,
        _mapped={path: _map(path, states[path].size) for path in files},
    )


def file_state(path: Path) -> FileState:
    """The state of a file; raises SourceError if it cannot be read."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    return FileState(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `layers.2` before `layers.10`."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _map(path: Path, size: int) -> torch.Tensor:
    try:
        # Not shared: opened for reading alone, and a stray write would stay in this process.
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{path} cannot be mapped: {error}") from error
