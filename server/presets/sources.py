"""Sources: adapters and checkpoints read from folders, checked against the base, and shared."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from merging.adapter import Adapter, BaseTensor
from merging.base import Base
from merging.checkpoint import Progress
from merging.checkpoint_fit import fit_checkpoint
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import BaseMismatchError, SourceError
from merging.not_weights import not_a_folder
from merging.overlay_weights import OverlayWeights
from merging.plan import Plan
from merging.regular_file import check_files
from merging.relation import relate
from server.adapters.dense_cache import DenseCache
from server.adapters.reader import AdapterReader, Content
from server.engine.conversation import Conversation
from server.presets.contents import Contents, check_unchanged, is_adapter, is_unchanged
from server.presets.doubts import Doubts, relation_doubt
from server.presets.source_delta import recorded_base
from server.presets.source_folders import SourceFolders

logger = logging.getLogger(__name__)

ReadConversation = Callable[[Path], tuple[Conversation | None, tuple[str, ...]]]
"""Reads how a source's folder wants to be talked to (None: as the base), with warnings."""

NUM_RETIRED = 8
"""Contents kept in memory after their name got another: old revisions may still be called."""


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source. Without a `content` it cannot be used, for the `reasons`.

    `plan` is the source alone (an adapter at weight 1), for those who call it by its name, and
    `conversation` how it is talked to then (None: as the base is). `parent` names the source that
    it is an adapter on, whose delta its own includes.
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
    conversation: Conversation | None = None
    parent: str | None = None


class SourceRegistry:
    """Reads sources, holds each content once, and says which folders HTTP clients may name.

    An adapter is copied into memory. A checkpoint stays in its folder: its files are opened,
    mapped, and watched for changes; one whose files changed cannot be read any more.

    `source_dirs` are the only folders from which sources may be registered over HTTP. `resident`
    are the base's own files, which checkpoints are compared with. `base_tensor` looks up the base's
    own tensors, for adapters that hold copies of them. `dense` keeps the deltas that PEFT has to
    merge. `forget` is told the digest of each content that leaves the memory, or is held by another
    object from now on. `read_conversation` finds out how a source is talked to; without it all are
    talked to as the base is.
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
        dense: DenseCache | None = None,
        forget: Callable[[str], None] = lambda digest: None,
        doubts: Doubts | None = None,
        read_conversation: ReadConversation = lambda folder: (None, ()),
    ) -> None:
        self.contents = contents or Contents(None)
        self.folders = SourceFolders(source_dirs)
        self.doubts = doubts or Doubts(base)
        self.read_conversation = read_conversation
        self._forget = forget
        self._current: frozenset[str] = frozenset()
        self._base = base
        self._resident = resident
        self._allow_base_mismatch = allow_base_mismatch
        self._adapters = AdapterReader(
            base,
            resident=resident,
            cache=dense,
            base_tensor=base_tensor,
            allow_base_mismatch=allow_base_mismatch,
            make_room=self._drop_dense,
        )
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Content] = OrderedDict()  # by digest, last used last

    def read(
        self, path: Path, progress: Progress | None = None, parent: Content | None = None
    ) -> tuple[Content, tuple[str, ...]]:
        """Read and check the source in a folder; returns warnings too.

        Equal contents of adapters are one object, whatever their folders. `progress` hears of the
        bytes of a checkpoint. An adapter may be one on the content `parent`. Raises SourceError
        with every reason why the source is not fit.
        """
        check_files(path)
        content, found = self._read(path, progress, parent)
        warnings = tuple(found)
        if (doubt := self._unrelated(content)) is not None:
            warnings = (doubt, *warnings)
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        with self._lock:
            content = self._share(content)
            if self._current:  # while the server starts nothing is current yet
                self._evict()
        return content, warnings

    def check_related(self, content: Content) -> None:
        """Raises BaseMismatchError if a checkpoint that was read is no fine-tune of the base,
        unless that is allowed. Of a base that is not trained itself nothing can be said.
        """
        relation = self.doubts.relation(content.digest)
        if relation is None or self._allow_base_mismatch:
            return
        if relation.is_unrelated and relation.base_is_trained:
            raise BaseMismatchError(
                [f"{relation_doubt(relation)}; --allow-base-mismatch takes it all the same"]
            )

    def _read(
        self, path: Path, progress: Progress | None, parent: Content | None
    ) -> tuple[Content, list[str]]:
        if is_adapter(path):
            return self._adapters.read(path, parent)
        if parent is not None:
            raise SourceError(
                f"{path} is no adapter, so it cannot have a parent: a checkpoint's weights are "
                "whole; leave the parent out"
            )
        return self._fit(self._open(path, progress))

    def keep(self, content: Content, path: Path, parent: Content | None) -> None:
        """Keep what a content was read from; StoreError if that does not work."""
        self.contents.keep(
            content,
            path,
            None if parent is None else parent.digest,
            lambda copy: self._adapters.digest(copy, parent),
        )

    # What `contents` opens what it kept with

    def adapter(self, folder: Path, parent: Content | None) -> Content:
        """An adapter from the copy of its files."""
        return self._adapters.read(folder, parent)[0]

    def checkpoint(self, folder: Path) -> CheckpointWeights:
        """A checkpoint from its folder."""
        return self._fit(open_checkpoint(folder))[0]

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
        content = self.contents.read(digest, self)
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
            raise SourceError(not_a_folder(path))
        return open_checkpoint(path, progress)

    def _fit(self, opened: CheckpointWeights) -> tuple[CheckpointWeights, list[str]]:
        assert self._resident is not None, "a server has its base's files at hand"
        return fit_checkpoint(opened, self._base, self._resident)

    def _unrelated(self, content: Content) -> str | None:
        """Look at how a checkpoint is related to the base; the doubt about it, if there is one."""
        if not isinstance(content, CheckpointWeights) or self._resident is None:
            return None
        relation = self.doubts.relation(content.digest) or relate(content, self._resident)
        if relation is None:
            return None
        self.doubts.note_relation(content.digest, relation)
        return relation_doubt(relation)

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

    def _drop_dense(self) -> None:
        """Let go of the dense deltas that are not current: those of old revisions can be merged
        again.
        """
        with self._lock:
            if not self._current:  # while the server starts nothing is current yet
                return
            for digest in self._held.keys() - self._current:
                if isinstance(self._held[digest], OverlayWeights):
                    del self._held[digest]
                    self._forget(digest)

    def _evict(self) -> None:
        """Forget the contents that were used longest ago. Called with the lock."""
        retired = [digest for digest in self._held if digest not in self._current]
        for digest in retired[: max(0, len(retired) - NUM_RETIRED)]:
            del self._held[digest]
            self._forget(digest)


def present_reasons(source: Source) -> tuple[str, ...]:
    """Why a source cannot be used now: as for its files, a checkpoint's may change at any time."""
    if source.content is None:
        return source.reasons
    try:
        check_unchanged(source.content)
    except SourceError as error:
        return error.reasons
    return ()
