"""Sources: adapters read from folders, checked against the base, and shared by content."""

import logging
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from merging.adapter import WEIGHTS, Adapter, BaseTensor, check_adapter, read_adapter
from merging.adapter_config import FILE
from merging.base import Base
from merging.errors import SourceError
from merging.plan import Plan
from server.errors import ForbiddenError, InvalidRequestError
from server.presets.database import StoreError

logger = logging.getLogger(__name__)

NUM_RETIRED = 8
"""Contents kept in memory after their name got another: old revisions may still be called."""


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source. Without an `adapter` it cannot be used, for the `reasons`.

    `plan` is the adapter alone at weight 1, for those who call the source by its name.
    """

    name: str
    path: Path
    digest: str
    adapter: Adapter | None
    plan: Plan | None
    created_at: datetime
    updated_at: datetime
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Contents:
    """A copy of every content by its digest: a source's own folder may change or go.

    Without a `folder` the contents stay in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, Adapter] = {}

    def keep(self, adapter: Adapter, path: Path) -> None:
        """Copy the files that an adapter was read from; StoreError if that does not work."""
        if self.has(adapter.digest):
            return
        if self._folder is None:
            self._memory[adapter.digest] = adapter
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._folder) as temporary:
                copy = Path(temporary) / "copy"
                copy.mkdir()
                for file in (FILE, WEIGHTS):
                    _copy(path / file, copy / file)
                if read_adapter(copy).digest != adapter.digest:
                    raise StoreError(f"{path} changed while it was read: try again")
                target = self._path(adapter.digest)
                shutil.rmtree(target, ignore_errors=True)  # what is there is not whole
                copy.rename(target)
        except (OSError, SourceError) as error:
            raise StoreError(f"the content of {path} could not be kept: {error}") from error

    def has(self, digest: str) -> bool:
        """Whether a content is there."""
        if self._folder is None:
            return digest in self._memory
        return all(os.path.isfile(self._path(digest) / file) for file in (FILE, WEIGHTS))

    def read(self, digest: str) -> Adapter:
        """Read a content; SourceError if it is gone or damaged."""
        if digest in self._memory:
            return self._memory[digest]
        if not self.has(digest):
            raise SourceError(f"its content {digest} is gone")
        adapter = read_adapter(self._path(digest))
        if adapter.digest != digest:
            raise SourceError(f"{self._path(digest)} is damaged: its content is {adapter.digest}")
        return adapter

    def prune(self, used: Collection[str]) -> None:
        """Forget the contents that are not among those in use."""
        for digest in self._memory.keys() - used:
            del self._memory[digest]
        if self._folder is None:
            return
        names = {self._path(digest).name for digest in used}
        try:
            unused = [entry for entry in self._folder.iterdir() if entry.name not in names]
        except OSError:  # nothing was ever kept, or the next edit tries again
            return
        for entry in unused:
            shutil.rmtree(entry, ignore_errors=True)

    def _path(self, digest: str) -> Path:
        assert self._folder is not None, "contents are in memory"
        return self._folder / digest.removeprefix("sha256:")


class SourceRegistry:
    """Reads adapters, holds each content once, and says which folders HTTP clients may name.

    `source_dirs` are the only folders from which sources may be registered over HTTP.
    `base_tensor` looks up the base's own tensors, for adapters that hold copies of them. `forget`
    is told the digest of each content that leaves the memory.
    """

    def __init__(
        self,
        base: Base,
        source_dirs: Sequence[Path] = (),
        *,
        allow_base_mismatch: bool = False,
        base_tensor: BaseTensor | None = None,
        contents: Contents | None = None,
        forget: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self.contents = contents or Contents(None)
        self._forget = forget
        self._current: frozenset[str] = frozenset()
        self._base = base
        self._source_dirs = tuple(Path(os.path.realpath(folder)) for folder in source_dirs)
        self._allow_base_mismatch = allow_base_mismatch
        self._base_tensor = base_tensor
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()  # by digest, last used last

    def read(self, path: Path) -> tuple[Adapter, tuple[str, ...]]:
        """Read and check the adapter in a folder; returns warnings too.

        Equal contents are one object, whatever their folders. Raises SourceError with every reason
        why the adapter is not fit.
        """
        adapter = read_adapter(path)
        warnings = self._check(adapter)
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        with self._lock:
            adapter = self._share(adapter)
            if self._current:  # while the server starts nothing is current yet
                self._evict()
        return adapter, warnings

    def content(self, digest: str) -> Adapter:
        """The adapter with this digest, from memory or else from the copy that was kept.

        Raises SourceError if it is gone, or does not fit the base.
        """
        with self._lock:
            if digest in self._adapters:
                self._adapters.move_to_end(digest)
                return self._adapters[digest]
        adapter = self.contents.read(digest)
        self._check(adapter)
        with self._lock:
            adapter = self._share(adapter)
            self._evict()
        return adapter

    def has(self, digest: str) -> bool:
        """Whether a content is in memory or kept."""
        return digest in self._adapters or self.contents.has(digest)

    def release(self, current: Iterable[Adapter]) -> None:
        """Forget all contents but the current ones and the few that were used last."""
        by_digest = {adapter.digest: adapter for adapter in current}
        with self._lock:
            self._current = frozenset(by_digest)
            self._adapters.update(by_digest)
            self._evict()

    def _check(self, adapter: Adapter) -> tuple[str, ...]:
        warnings = check_adapter(
            adapter,
            self._base,
            allow_base_mismatch=self._allow_base_mismatch,
            base_tensor=self._base_tensor,
        )
        return tuple(warnings)

    def allowed_path(self, text: str) -> Path:
        """The folder that a client names, symlinks followed; an error if it is not allowed.

        What lies outside the source folders gets one answer, whether it exists or not.
        """
        if not self._source_dirs:
            raise ForbiddenError(
                "sources cannot be registered over HTTP: the server was started without "
                "--source-dir, which names the folders that they may come from",
                param="path",
            )
        inside = [path for path in self._candidates(text) if self._is_inside(path)]
        if not inside:
            raise _not_allowed(text)
        path = next((path for path in inside if os.path.isdir(path)), inside[0])
        try:
            entries = list(_entries(path))
        except OSError as error:
            raise _not_allowed(text) from error
        if not all(self._is_inside(entry) for entry in entries):
            raise _not_allowed(text)
        return path

    def _candidates(self, text: str) -> Iterator[Path]:
        if not text or "\0" in text or text.encode(errors="replace").decode() != text:
            return
        for folder in self._source_dirs:
            # An absolute path replaces the folder, as pathlib's "/" does.
            yield Path(os.path.realpath(folder / text))

    def _is_inside(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._source_dirs)

    def _share(self, adapter: Adapter) -> Adapter:
        """The adapter on the factors that are in memory already. Called with the lock."""
        shared = self._adapters.get(adapter.digest, adapter)
        if recorded_base(shared) == recorded_base(adapter):
            adapter = shared
        else:  # the same tensors, whose folder says something else of their base
            adapter = replace(adapter, factors=shared.factors)
        self._adapters[adapter.digest] = adapter
        self._adapters.move_to_end(adapter.digest)
        return adapter

    def _evict(self) -> None:
        """Forget the contents that were used longest ago. Called with the lock."""
        retired = [digest for digest in self._adapters if digest not in self._current]
        for digest in retired[: max(0, len(retired) - NUM_RETIRED)]:
            del self._adapters[digest]
            self._forget(digest)


def recorded_base(adapter: Adapter) -> tuple[str | None, str | None]:
    """What an adapter's files say of its base: the digest of its content does not cover it."""
    return adapter.base_name, adapter.base_digest


def _copy(source: Path, target: Path) -> None:
    """Copy a file to the disk. Not a link: the source may be written again in place."""
    with source.open("rb") as content, target.open("wb") as copy:
        shutil.copyfileobj(content, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _entries(folder: Path) -> Iterator[Path]:
    """What the files of a folder really are: a link may lead out of it."""
    if os.path.isdir(folder):
        yield from (Path(os.path.realpath(entry)) for entry in folder.iterdir())


def _not_allowed(text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text!r} is not inside a folder that --source-dir names: give a path relative to one "
        "of them",
        param="path",
        code="path_not_allowed",
    )
