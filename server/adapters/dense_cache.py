"""Dense deltas on the disk, by digest and under a budget of bytes."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from weakref import WeakSet

from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError
from merging.overlay_weights import OverlayWeights
from server.adapters.request import MergeAnswer

logger = logging.getLogger(__name__)

TENSORS, NOTE, UNFINISHED = "model.safetensors", "delta.json", ".unfinished-"
STALE_SECONDS = 86_400
"""After a day nobody works any more on what is unfinished."""

Merge = Callable[[Path, int], MergeAnswer]
"""Writes the tensors to a file, of at most so many bytes."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The tensors of a dense delta, and the seconds that merging them took."""

    tensors: CheckpointWeights
    seconds: float


class DenseCache:
    """A folder for each digest, written elsewhere and renamed: what is there is whole.

    What was used longest ago is deleted when there is no room, but never what is in use: the
    deltas of overlays that are alive. One merge runs at a time, so that there is never more than
    one copy of the base for it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = Lock()
        self._used: WeakSet[OverlayWeights] = WeakSet()

    def note_use(self, overlay: OverlayWeights) -> None:
        """Keep the delta of an overlay as long as that is alive."""
        self._used.add(overlay)

    def in_use(self, digest: str) -> OverlayWeights | None:
        """An overlay with this delta that is alive, and can be read."""
        for overlay in list(self._used):
            if overlay.digest == digest:
                try:
                    overlay.check_unchanged()
                except SourceError:
                    continue
                return overlay
        return None

    def get(self, digest: str, merge: Merge, let_go: Callable[[], None]) -> Delta:
        """The delta of a digest, merged now if it is not there or is damaged. Before that `let_go`
        drops the overlays that are alive for nothing.

        Raises SourceError if that is not possible, or there is no room for it.
        """
        with self._lock:
            found = self._open(digest)
            if found is None:
                let_go()
                self._make(digest, merge)
                found = self._open(digest)
            if found is None:
                raise SourceError(f"{self._path(digest)} cannot be read, and was just written")
            return found

    def _open(self, digest: str) -> Delta | None:
        path = self._path(digest)
        try:
            note = json.loads((path / NOTE).read_bytes())
            tensors = open_checkpoint(path)
            if tensors.digest != note["content"]:
                raise SourceError(f"its content is {tensors.digest}, and was {note['content']}")
            os.utime(path)  # used last
            return Delta(tensors, float(note["seconds"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SourceError) as error:
            logger.warning("%s is damaged, and merged anew: %s", path, error)
            shutil.rmtree(path, ignore_errors=True)
            return None

    def _make(self, digest: str, merge: Merge) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_stale()
            unfinished = Path(mkdtemp(prefix=UNFINISHED, dir=self._folder))
        except OSError as error:
            raise SourceError(f"{self._folder} cannot be written: {error.strerror}") from error
        try:
            answer = merge(unfinished / TENSORS, self._max_bytes - self._used_bytes())
            note = {"content": open_checkpoint(unfinished).digest, "seconds": answer.seconds}
            (unfinished / NOTE).write_text(json.dumps(note))
            self._make_room(answer.num_bytes)
            unfinished.rename(self._path(digest))
        except OSError as error:
            raise SourceError(f"its dense delta cannot be kept: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _make_room(self, num_bytes: int) -> None:
        """Delete what was used longest ago until there is room for so many bytes."""
        used = {self._path(overlay.digest) for overlay in list(self._used)}
        entries = sorted(self._entries(), key=lambda path: path.stat().st_mtime)
        total = sum(_size(path) for path in entries)
        for path in entries:
            if total + num_bytes <= self._max_bytes:
                return
            if path not in used:
                total -= _size(path)
                shutil.rmtree(path)
                logger.info("%s is deleted to make room (--dense-cache)", path)

    def _used_bytes(self) -> int:
        used = {self._path(overlay.digest) for overlay in list(self._used)}
        return sum(_size(path) for path in self._entries() if path in used)

    def _entries(self) -> list[Path]:
        return [p for p in self._folder.iterdir() if not p.name.startswith(UNFINISHED)]

    def _drop_stale(self) -> None:
        for path in self._folder.glob(f"{UNFINISHED}*"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")


def _size(path: Path) -> int:
    """The bytes of an entry's tensors."""
    try:
        return (path / TENSORS).stat().st_size
    except OSError:
        return 0
