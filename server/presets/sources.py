"""Sources: adapters read from folders, checked against the base, and shared by content."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from merging.adapter import Adapter, BaseTensor, check_adapter, read_adapter
from merging.base import Base
from merging.errors import SourceError
from server.errors import ForbiddenError, InvalidRequestError

logger = logging.getLogger(__name__)

NUM_RETIRED = 8
"""Contents kept in memory after their name got another: old revisions may still be called."""


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source. Without an `adapter` it cannot be used, for the `reasons`."""

    name: str
    path: Path
    digest: str
    adapter: Adapter | None
    created_at: datetime
    updated_at: datetime
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class SourceRegistry:
    """Reads adapters, holds each content once, and says which folders HTTP clients may name.

    `source_dirs` are the only folders from which sources may be registered over HTTP.
    `base_tensor` looks up the base's own tensors, for adapters that hold copies of them.
    """

    def __init__(
        self,
        base: Base,
        source_dirs: Sequence[Path] = (),
        *,
        allow_base_mismatch: bool = False,
        base_tensor: BaseTensor | None = None,
    ) -> None:
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
        warnings = check_adapter(
            adapter,
            self._base,
            allow_base_mismatch=self._allow_base_mismatch,
            base_tensor=self._base_tensor,
        )
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        return self._share(adapter), tuple(warnings)

    def content(self, digest: str, path: Path | None) -> Adapter | None:
        """The adapter with this digest, from memory or else from `path`; None if it is gone."""
        with self._lock:
            if digest in self._adapters:
                self._adapters.move_to_end(digest)
                return self._adapters[digest]
        if path is None:
            return None
        try:
            adapter, _ = self.read(path)
        except SourceError as error:
            logger.info("content %s is no longer in %s: %s", digest, path, error)
            return None
        return adapter if adapter.digest == digest else None

    def release(self, current: Collection[str]) -> None:
        """Forget all contents but the current ones and the few that were used last."""
        with self._lock:
            retired = [digest for digest in self._adapters if digest not in current]
            for digest in retired[: max(0, len(retired) - NUM_RETIRED)]:
                del self._adapters[digest]

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
        path = next((path for path in inside if path.is_dir()), inside[0])
        if not all(self._is_inside(entry) for entry in _entries(path)):
            raise _not_allowed(text)
        return path

    def _candidates(self, text: str) -> Iterator[Path]:
        if not text or "\0" in text:
            return
        for folder in self._source_dirs:
            # An absolute path replaces the folder, as pathlib's "/" does.
            yield Path(os.path.realpath(folder / text))

    def _is_inside(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._source_dirs)

    def _share(self, adapter: Adapter) -> Adapter:
        with self._lock:
            shared = self._adapters.setdefault(adapter.digest, adapter)
            self._adapters.move_to_end(adapter.digest)
        return shared


def _entries(folder: Path) -> Iterator[Path]:
    """What the files of a folder really are: a link may lead out of it."""
    if folder.is_dir():
        yield from (Path(os.path.realpath(entry)) for entry in folder.iterdir())


def _not_allowed(text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text!r} is not inside a folder that --source-dir names: give a path relative to one "
        "of them",
        param="path",
        code="path_not_allowed",
    )
