"""The largest elements of a tensor: exactly k of them, whatever is equal."""

import math

import numpy as np
import numpy.typing as npt
import torch


def kth_largest(magnitudes: torch.Tensor, k: int) -> float:
    """The k-th largest element of a float32 tensor of any shape without negative elements, k in 1
    to its size; infinity for k = 0.
    """
    return _kth_largest(magnitudes.reshape(-1).numpy(), k)


def largest(magnitudes: torch.Tensor, k: int) -> torch.Tensor:
    """A mask of the k largest elements of a float32 tensor without negative elements, in its shape;
    of equal ones the first.

    Masks of one tensor for a smaller k are part of those for a larger one.
    """
    flat = magnitudes.reshape(-1).numpy()
    threshold = _kth_largest(flat, k)
    kept = flat >= threshold
    surplus = np.count_nonzero(kept) - k
    if surplus:
        kept[np.flatnonzero(flat == threshold)[-surplus:]] = False
    return torch.from_numpy(kept).reshape(magnitudes.shape)


def _kth_largest(flat: npt.NDArray[np.float32], k: int) -> float:
    if k == 0:
        return math.inf
    # Numbers that are not negative sort like their bits, and whole numbers are sorted faster.
    bits = np.partition(flat.view(np.int32), flat.size - k)[flat.size - k]
    return float(bits.view(np.float32))
