"""Bases of core spaces that are kept between plans, so that an edit of weights needs no SVD."""

from collections.abc import Sequence

from merging.adapter import LowRank
from merging.methods.core_basis import CoreBasis, core_basis
from merging.trim_cache import TrimCache


class CoreBases:
    """The bases that were used last, by tensor and adapters' digests; call it like `new_basis`.

    A basis takes about 16 K^2 bytes and 4 for each element of its cores, where K is the sum of the
    ranks. For any number of threads.
    """

    def __init__(self, max_bytes: int = 1 << 27) -> None:
        self._cache = TrimCache(max_bytes)

    def __call__(
        self, factors: Sequence[LowRank], digests: Sequence[str], tensor_name: str
    ) -> CoreBasis:
        found = self._cache.get((tensor_name, *digests), lambda: core_basis(factors))
        assert found is not None, "every factors have a basis"
        return found
