"""Random numbers of a merge: a function of what they are for, not of when they are drawn."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint16]
WORD = 16  # bits of a number


@dataclass(frozen=True, slots=True)
class Random:
    """The random numbers of one source's tensor: of 128 key bits that hash the three fields.

    They do not depend on the order of sources or tensors, or on threads. They are those of numpy's
    Philox 4x64 counter generator (Salmon et al. 2011), which are fixed for all its versions.
    """

    seed: int
    source_digest: str
    tensor_name: str

    def words(self, count: int) -> Words:
        """The first `count` numbers, uniform over all of 16 bits."""
        return _words(self._stream(), count)

    def keep(self, probability: float | torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Booleans of a shape, each true with its probability: one for all, or float64 that can be
        broadcast to the shape.

        Probabilities are exact to 32 bits, though most elements need 16: the others, one of 65,536,
        are those whose number is just the probability's upper half.
        """
        limits = np.rint(np.clip(np.asarray(probability, dtype=np.float64), 0, 1) * 2.0**32)
        upper = np.minimum(limits.astype(np.int64) >> WORD, (1 << WORD) - 1)
        lower = limits.astype(np.int64) - (upper << WORD)  # 65536 for a probability of 1
        stream, upper = self._stream(), upper.astype(np.uint16)
        words = _words(stream, shape.numel()).reshape(shape or (1,))
        kept = words < upper
        undecided = np.flatnonzero(words == upper)
        own = np.broadcast_to(lower, words.shape)[np.unravel_index(undecided, words.shape)]
        kept.reshape(-1)[undecided] = _words(stream, len(undecided)) < own
        return torch.from_numpy(kept).reshape(shape)

    def _stream(self) -> np.random.Philox:
        text = f"{self.seed}\0{self.source_digest}\0{self.tensor_name}"
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return np.random.Philox(key=np.frombuffer(key, dtype="<u8"))


def _words(stream: np.random.Philox, count: int) -> Words:
    """The next numbers of a stream; what is left of its last 64 bits is not used."""
    raw = np.asarray(stream.random_raw(-(-count // 4)))
    return raw.astype("<u8", copy=False).view("<u2")[:count]
