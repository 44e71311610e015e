"""Trims that are kept: packed, bounded, and the same as when they were found."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from merging.methods.trim import Trimmed
from merging.trim_cache import OVERHEAD, PackedTrim, TrimCache, pack


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_packed_trim_does_what_the_trim_does(size: int, scale: float) -> None:
    """For every slice of the delta, also those that start inside a byte."""
    generator = torch.Generator().manual_seed(size)
    kept = torch.rand(size, generator=generator) < 0.5
    delta = torch.randn(size, generator=generator)
    packed = pack(Trimmed(kept, scale))
    for start in {0, 1, size // 3, size - 1}:
        for stop in {start + 1, (start + size) // 2 + 1, size}:
            part = delta[start:stop].clone()
            packed.apply(start, part)
            assert part.equal((delta * kept * scale)[start:stop])


def test_masks_take_a_bit_for_each_element() -> None:
    """And nothing if all elements are kept."""
    kept = torch.zeros(8000, dtype=torch.bool)
    kept[3] = True
    assert pack(Trimmed(kept)).num_bytes == 1000 + OVERHEAD
    everything = pack(Trimmed(torch.ones(8000, dtype=torch.bool)))
    assert everything.bits is None
    assert everything.num_bytes == OVERHEAD


def trim(size: int) -> PackedTrim:
    """A trim of so many bytes in all."""
    mask = torch.zeros((size - OVERHEAD) * 8, dtype=torch.bool)
    return pack(Trimmed(mask))


def test_the_least_recently_used_are_dropped() -> None:
    """Beyond `max_bytes`, and no more than need be; what is too large is not kept at all."""
    cache = TrimCache(3000)
    for key in "abc":
        assert cache.get(key, lambda: trim(1000)) is not None
    assert (cache.num_bytes, len(cache)) == (3000, 3)
    cache.get("a", lambda: pytest.fail("it was there"))
    cache.get("d", lambda: trim(1000))
    assert (cache.num_bytes, len(cache)) == (3000, 3)
    found = []
    cache.get("b", lambda: found.append(1) or trim(1000))  # was dropped, and drops c
    cache.get("a", lambda: pytest.fail("it was used after b"))
    assert found == [1]
    cache.get("large", lambda: trim(3001))
    assert (cache.num_bytes, len(cache)) == (3000, 3)
    cache.clear()
    assert (cache.num_bytes, len(cache)) == (0, 0)


def test_what_could_not_be_found_is_not_kept() -> None:
    """None stands for a delta that is not finite: it is looked at again."""
    cache = TrimCache(3000)
    assert cache.get("a", lambda: None) is None
    assert len(cache) == 0
    assert cache.get("a", lambda: trim(1000)) is not None


def test_threads_may_share_it() -> None:
    """Its size is right after many threads filled it."""
    cache = TrimCache(20_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.get(i % 40, lambda: trim(600 + i % 7)), range(2000)))
    assert cache.num_bytes <= 20_000
    kept = [cache.get(key, lambda: trim(20_001)) for key in range(40)]
    assert cache.num_bytes == sum(t.num_bytes for t in kept if t and t.num_bytes <= 20_000)
