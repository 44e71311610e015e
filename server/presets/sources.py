"""Sources: adapters and checkpoints read from folders, checked against the base, and shared."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from merging.adapter import Adapter, BaseTensor, check_adapter, read_adapter
from merging.adapter_fit import under_model_names
from merging.base import Base
from merging.checkpoint import Progress
from merging.checkpoint_fit import fit_checkpoint
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError
from merging.plan import Plan
from merging.source import Kind
from server.presets.contents import Content, Contents, check_unchanged, is_adapter, is_unchanged
from server.presets.source_folders import SourceFolders

logger = logging.getLogger(__name__)

NUM_RETIRED = 8
"""Contents kept in memory after their name got another: old revisions may still be called."""


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source. Without a `content` it cannot be used, for the `reasons`.

    `plan` is the source alone (an adapter at weight 1), for those who call it by its name.
    """

    name: str
    path: Path
    digest: str
    content: Content | None
    plan: Plan | None
    created_at: datetime
    updated_at: datetime
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class SourceRegistry:
    """Reads sources, holds each content once, and says which folders HTTP clients may name.

    An adapter is copied into memory. A checkpoint stays in its folder: its files are opened,
    mapped, and watched for changes; one whose files changed cannot be read any more.

    `source_dirs` are the only folders from which sources may be registered over HTTP. `resident`
    are the base's own files, which checkpoints are compared with. `base_tensor` looks up the base's
    own tensors, for adapters that hold copies of them. `forget` is told the digest of each content
    that leaves the memory, or is held by another object from now on.
    """

    def __init__(
        self,
        base: Base,
        source_dirs: Sequence[Path] = (),
        *,
        resident: CheckpointWeights | None = None,
        allow_base_mismatch: bool = False,
        base_tensor: BaseTensor | None = None,
        contents: Contents | None = None,
        forget: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self.contents = contents or Contents(None)
        self.folders = SourceFolders(source_dirs)
        self._forget = forget
        self._current: frozenset[str] = frozenset()
        self._base = base
        self._resident = resident
        self._allow_base_mismatch = allow_base_mismatch
        self._base_tensor = base_tensor
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Content] = OrderedDict()  # by digest, last used last

    def read(self, path: Path, progress: Progress | None = None) -> tuple[Content, tuple[str, ...]]:
        """Read and check the source in a folder; returns warnings too.

        Equal contents of adapters are one object, whatever their folders. `progress` hears of the
        bytes of a checkpoint. Raises SourceError with every reason why the source is not fit.
        """
        content = read_adapter(path) if is_adapter(path) else self._open(path, progress)
        content, warnings = self._checked(content)
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        with self._lock:
            content = self._share(content)
            if self._current:  # while the server starts nothing is current yet
                self._evict()
        return content, warnings

    def content(self, digest: str) -> Content:
        """The content with this digest, from memory or else from where it was kept.

        Raises SourceError if it is gone, or does not fit the base.
        """
        with self._lock:
            held = self._held.get(digest)
            if held is not None:
                self._held.move_to_end(digest)
        if held is not None and is_unchanged(held):
            return held
        content, _ = self._checked(self.contents.read(digest, lambda opened: self._fit(opened)[0]))
        with self._lock:
            content = self._share(content)
            self._evict()
        return content

    def has(self, digest: str) -> bool:
        """Whether a content is in memory or kept."""
        held = self._held.get(digest)
        if held is not None and is_unchanged(held):
            return True
        return self.contents.has(digest)

    def release(self, current: Iterable[Content]) -> None:
        """Forget all contents but the current ones and the few that were used last."""
        by_digest = {content.digest: content for content in current}
        with self._lock:
            self._current = frozenset(by_digest)
            self._held.update(by_digest)
            self._evict()

    def _open(self, path: Path, progress: Progress | None) -> CheckpointWeights:
        """Open a checkpoint, unless it is: hashing it takes as long as reading it."""
        with self._lock:
            held = list(self._held.values())
        for content in held:
            is_here = isinstance(content, CheckpointWeights) and content.folder == path
            if is_here and is_unchanged(content):
                assert isinstance(content, CheckpointWeights)
                return content
        if not os.path.isdir(path):
            raise SourceError(f"{path} is not a folder")
        return open_checkpoint(path, progress)

    def _fit(self, opened: CheckpointWeights) -> tuple[CheckpointWeights, list[str]]:
        assert self._resident is not None, "a server has its base's files at hand"
        return fit_checkpoint(opened, self._base, self._resident)

    def _checked(self, content: Content) -> tuple[Content, tuple[str, ...]]:
        """The content as it fits the base, and warnings."""
        if isinstance(content, CheckpointWeights):
            fitted, told = self._fit(content)
            return fitted, tuple(told)
        content = under_model_names(content, self._base)
        warnings = check_adapter(
            content,
            self._base,
            allow_base_mismatch=self._allow_base_mismatch,
            base_tensor=self._base_tensor,
        )
        return content, tuple(warnings)

    def _share(self, content: Content) -> Content:
        """The content on the factors that are in memory already. Called with the lock."""
        held = self._held.get(content.digest)
        shared = content if held is None else held
        if isinstance(content, Adapter) and isinstance(shared, Adapter):
            if recorded_base(shared) == recorded_base(content):
                content = shared
            else:  # the same tensors, whose folder says something else of their base
                content = replace(content, factors=shared.factors)
        # Of checkpoints the one opened last stays: the folder of the other may be gone.
        if held is not None and held is not content:
            self._forget(content.digest)  # plans that would read the other's files
        self._held[content.digest] = content
        self._held.move_to_end(content.digest)
        return content

    def _evict(self) -> None:
        """Forget the contents that were used longest ago. Called with the lock."""
        retired = [digest for digest in self._held if digest not in self._current]
        for digest in retired[: max(0, len(retired) - NUM_RETIRED)]:
            del self._held[digest]
            self._forget(digest)


def recorded_base(content: Content) -> tuple[str | None, str | None]:
    """What an adapter's files say of its base: the digest of its content does not cover it.

    A checkpoint says nothing.
    """
    if isinstance(content, CheckpointWeights):
        return None, None
    return content.base_name, content.base_digest


def kind_of(content: Content) -> Kind:
    """Adapter or checkpoint."""
    return "adapter" if isinstance(content, Adapter) else "checkpoint"


def present_reasons(source: Source) -> tuple[str, ...]:
    """Why a source cannot be used now: as for its files, a checkpoint's may change at any time."""
    if source.content is None:
        return source.reasons
    try:
        check_unchanged(source.content)
    except SourceError as error:
        return error.reasons
    return ()
