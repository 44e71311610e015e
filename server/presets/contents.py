"""Contents of sources by digest: what old revisions are made of, whatever became of the folders."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from merging.adapter import Adapter, read_adapter
from merging.adapter_config import FILE
from merging.adapter_files import weights_path
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError
from server.adapters.reader import Content
from server.presets.database import StoreError

Identify = Callable[[Path], str]

POINTER, PARENT = "checkpoint.json", "parent.json"


class Opener(Protocol):
    """Makes contents of what was kept of them."""

    def adapter(self, folder: Path, parent: Content | None) -> Content:
        """An adapter from the copy of its files, on the content of its parent."""

    def checkpoint(self, folder: Path) -> CheckpointWeights:
        """A checkpoint from its folder, as it was when it was noted."""


class PlainOpener:
    """Opens files as they are, for low-rank adapters without parents."""

    def adapter(self, folder: Path, parent: Content | None) -> Content:
        """The factors in a folder."""
        return read_adapter(folder)

    def checkpoint(self, folder: Path) -> CheckpointWeights:
        """The tensors in a folder."""
        return open_checkpoint(folder)


def identify_adapter(folder: Path) -> str:
    """The digest of a low-rank adapter without a parent."""
    return read_adapter(folder).digest


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter; else it may hold a checkpoint."""
    try:
        names = os.listdir(folder)
    except OSError:  # whoever reads it says why
        return False
    return FILE in names or any(name.startswith("adapter_model.") for name in names)


def is_unchanged(content: Content) -> bool:
    """Whether a content can be read still. An adapter is in memory, so it always can."""
    try:
        check_unchanged(content)
    except SourceError:
        return False
    return True


def check_unchanged(content: Content) -> None:
    """Raises SourceError with the reasons if files changed that are read as they are needed."""
    if not isinstance(content, Adapter):
        content.check_unchanged()


class Contents:
    """A copy of every adapter by its digest: a source's own folder may change or go.

    Checkpoints are large and are not copied. Of each only its folder is noted here: the content is
    there as long as the folder holds it.
    Without a `folder` the contents stay in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, Content] = {}

    def keep(
        self,
        content: Content,
        path: Path,
        parent: str | None = None,
        identify: Identify = identify_adapter,
    ) -> None:
        """Copy the files that an adapter was read from; StoreError if that does not work.

        `parent`: the digest of the content that it is an adapter on. `identify` gives the digest of
        the copy.
        """
        is_checkpoint = isinstance(content, CheckpointWeights)
        if self.has(content.digest) and not is_checkpoint:
            return
        if self._folder is None:
            self._memory[content.digest] = content
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._folder) as temporary:
                copy = Path(temporary) / "copy"
                copy.mkdir()
                if is_checkpoint:
                    (copy / POINTER).write_text(json.dumps({"folder": str(path.absolute())}))
                else:
                    _copy_adapter(path, copy)
                    if identify(copy) != content.digest:
                        raise StoreError(f"{path} changed while it was read: try again")
                if parent is not None:
                    (copy / PARENT).write_text(json.dumps({"digest": parent}))
                target = self._path(content.digest)
                shutil.rmtree(target, ignore_errors=True)  # what is there is not whole, or moved
                copy.rename(target)
        except (OSError, SourceError) as error:
            raise StoreError(f"the content of {path} could not be kept: {error}") from error

    def has(self, digest: str) -> bool:
        """Whether a content is there; of a checkpoint, whether its folder is."""
        if self._folder is None:
            return digest in self._memory and is_unchanged(self._memory[digest])
        copy = self._path(digest)
        if (copy / FILE).is_file() and weights_path(copy).is_file():
            return True
        noted = self._noted_folder(digest)
        return noted is not None and noted.is_dir()

    def read(self, digest: str, opener: Opener | None = None) -> Content:
        """Read a content; SourceError if it is gone or damaged."""
        opener = opener or PlainOpener()
        if digest in self._memory:
            check_unchanged(self._memory[digest])
            return self._memory[digest]
        if not self.has(digest):
            raise SourceError(self.gone(digest))
        noted = self._noted_folder(digest)
        if noted is not None:
            checkpoint = opener.checkpoint(noted)
            if checkpoint.digest != digest:
                raise SourceError(self.gone(digest))
            return checkpoint
        parent = self._parent(digest)
        on = None if parent is None else self.read(parent, opener)
        adapter = opener.adapter(self._path(digest), on)
        if adapter.digest != digest:
            raise SourceError(f"{self._path(digest)} is damaged: its content is {adapter.digest}")
        return adapter

    def gone(self, digest: str) -> str:
        """Why a content is not there."""
        noted = self._noted_folder(digest)
        if noted is None:
            return f"its content {digest} is gone"
        return (
            f"its content {digest} is gone: it was the checkpoint in {noted}, which is not there "
            "any more or holds other tensors now; checkpoints are not copied, put it back"
        )

    def prune(self, used: Collection[str]) -> None:
        """Forget the contents that are not among those in use."""
        for digest in self._memory.keys() - used:
            del self._memory[digest]
        if self._folder is None:
            return
        names = {self._path(digest).name for own in used for digest in self._lineage(own)}
        try:
            unused = [entry for entry in self._folder.iterdir() if entry.name not in names]
        except OSError:  # nothing was ever kept, or the next edit tries again
            return
        for entry in unused:
            shutil.rmtree(entry, ignore_errors=True)

    def _lineage(self, digest: str | None) -> Iterator[str]:
        """A content, and those that it is an adapter on."""
        while digest is not None:
            yield digest
            digest = self._parent(digest)

    def _parent(self, digest: str) -> str | None:
        """The digest of the content that a kept one is an adapter on; None if there is none."""
        try:
            return str(json.loads((self._path(digest) / PARENT).read_bytes())["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _noted_folder(self, digest: str) -> Path | None:
        """The folder of a checkpoint that was noted; None for what is none."""
        if self._folder is None:
            content = self._memory.get(digest)
            return content.folder if isinstance(content, CheckpointWeights) else None
        try:
            return Path(json.loads((self._path(digest) / POINTER).read_text())["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, digest: str) -> Path:
        assert self._folder is not None, "contents are in memory"
        return self._folder / digest.removeprefix("sha256:")


def _copy_adapter(path: Path, copy: Path) -> None:
    for file in (path / FILE, weights_path(path)):
        _copy(file, copy / file.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file to the disk. Not a link: the source may be written again in place."""
    with source.open("rb") as content, target.open("wb") as copy:
        shutil.copyfileobj(content, copy)
        copy.flush()
        os.fsync(copy.fileno())
