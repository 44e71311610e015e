"""An adapter on another one: the delta of both, relative to the base, as one low-rank delta."""

from dataclasses import replace

import torch

from merging.adapter import Adapter, LowRank
from merging.digest import json_digest


def stacked_digest(parent: str, own: str) -> str:
    """The digest of an adapter `own` that was trained on the base with `parent` on it."""
    return json_digest(["stacked", parent, own])


def stack_adapters(parent: Adapter, own: Adapter) -> Adapter:
    """The sum of two deltas exactly: the factors of both, one after the other along the rank.

    What `own` records of its base, and its folder, stay.
    """
    modules = sorted({*parent.factors, *own.factors})
    factors = {
        module: _stacked([a.factors[module] for a in (parent, own) if module in a.factors])
        for module in modules
    }
    return replace(
        own,
        digest=stacked_digest(parent.digest, own.digest),
        factors=factors,
        num_bytes=sum(factor.num_bytes for factor in factors.values()),
        base_copies={},
        targets=(),
    )


def _stacked(parts: list[LowRank]) -> LowRank:
    if len(parts) == 1:
        return parts[0]
    a = torch.cat([part.a.float() for part in parts])
    b = torch.cat([part.scale * part.b.float() for part in parts], dim=1)
    return LowRank(a, b, 1.0)
