"""Trims that are kept between builds, so that an edit of weights does not find them again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from merging.methods.trim import Threshold, Trim, Trimmed
from merging.setting import Scalar

Bits = npt.NDArray[np.uint8]
OVERHEAD = 512  # bytes that an entry takes beside its mask, about


@dataclass(frozen=True, slots=True, eq=False)
class PackedTrim:
    """A mask of one bit for each element of a flattened delta, and a scale.

    `bits`: uint8 [size / 8, rounded up], the first element in the highest bit; None if all are
    kept.
    """

    bits: Bits | None
    scale: float

    @property
    def num_bytes(self) -> int:
        return OVERHEAD + (0 if self.bits is None else self.bits.nbytes)

    def apply(self, start: int, delta: torch.Tensor) -> None:
        """Trim `delta`, float32, in place: the elements of the flattened delta from `start` on."""
        if self.bits is not None:
            skipped, size = start % 8, delta.numel()
            packed = self.bits[start // 8 : (start + size + 7) // 8]
            kept = np.unpackbits(packed, count=skipped + size)[skipped:]
            values = delta.numpy()
            # numpy, as torch takes four times as long to multiply by booleans.
            np.multiply(values, kept.view(np.bool_), out=values)
        if self.scale != 1:
            delta.mul_(self.scale)


def pack(trimmed: Trimmed) -> PackedTrim:
    """A trim in an eighth of the mask's memory."""
    kept = trimmed.kept.reshape(-1).numpy()
    return PackedTrim(None if kept.all() else np.packbits(kept), trimmed.scale)


@dataclass(frozen=True, slots=True)
class TrimKey:
    """All that a trim depends on; `values` and `threshold` as they are given to it.

    `base` and `plain` are (digest of a model, name of a tensor): what the delta is the difference
    of. `source` is the source's digest, `tensor` its name of the tensor. `seed` is None if nothing
    is random.
    """

    trim: Trim
    base: tuple[str, str] | None
    plain: tuple[str, str]
    source: str
    tensor: str
    values: tuple[tuple[str, Scalar], ...]
    threshold: Threshold | None
    seed: int | None


class Cached(Protocol):
    """What the cache keeps."""

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""


T = TypeVar("T", bound=Cached)


class TrimCache:
    """Trims and thresholds by key; beyond `max_bytes` those least recently used are dropped.

    For any number of threads. Two that miss the same key both compute it, and get the same.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Cached] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """What all that is kept takes."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, compute: Callable[[], T | None]) -> T | None:
        """The entry of a key, computed if it is not there, and kept if it is not None and fits."""
        with self._lock:
            kept = self._entries.get(key)
            if kept is not None:
                self._entries.move_to_end(key)
                return cast(T, kept)
        found = compute()
        if found is not None:
            with self._lock:
                self._put(key, found)
        return found

    def shrink(self, max_bytes: int) -> None:
        """Keep at most `max_bytes`, now and from now on."""
        with self._lock:
            self.max_bytes = max_bytes
            self._drop_oldest()

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._num_bytes = 0

    def _put(self, key: Hashable, entry: Cached) -> None:
        if key in self._entries or entry.num_bytes > self.max_bytes:
            return
        self._entries[key] = entry
        self._num_bytes += entry.num_bytes
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self._num_bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._num_bytes -= dropped.num_bytes
