"""Random numbers of a merge: a function of what they are for, not of when they are drawn."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Random:
    """The random numbers of one source's tensor: of 128 key bits that hash the three fields.

    They do not depend on the order of sources or tensors, or on threads. They are those of numpy's
    Philox 4x64 counter generator (Salmon et al. 2011), which are fixed for all its versions.
    """

    seed: int
    source_digest: str
    tensor_name: str

    def bits(self, count: int) -> npt.NDArray[np.uint32]:
        """The first `count` numbers, uniform over all of 32 bits."""
        text = f"{self.seed}\0{self.source_digest}\0{self.tensor_name}"
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        stream = np.random.Philox(key=np.frombuffer(key, dtype="<u8"))
        words = np.asarray(stream.random_raw((count + 1) // 2)).astype("<u8", copy=False)
        return words.view("<u4")[:count]

    def keep(self, probability: float | torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Booleans of a shape, each true with its probability: one for all, or a tensor of them."""
        bits = self.bits(shape.numel())
        if isinstance(probability, torch.Tensor):
            limits = probability.double().reshape(-1).numpy() * 2.0**32
            return torch.from_numpy(bits < limits).reshape(shape)
        if probability >= 1:
            return torch.ones(shape, dtype=torch.bool)
        limit = np.uint32(max(probability, 0.0) * 2.0**32)
        return torch.from_numpy(bits < limit).reshape(shape)
