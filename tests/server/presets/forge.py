"""Variants without an engine: real plans and real builds into plain tensors, under control."""

import json
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.trim_cache import TrimCache
from server.presets.catalog import Catalog
from server.presets.variants import Variants
from server.presets.workshop import Workshop
from tests.server.presets.tiny import SIZE, World, tiny_base

NUM_TENSORS = 6
TENSOR_BYTES = SIZE * SIZE * 4
WHOLE = (NUM_TENSORS - 1) * TENSOR_BYTES + SIZE * 4
"""Bytes of a variant in which every tensor is new."""

KV_BYTES = 1000
"""Bytes of keys and values that each layer more takes."""

TIES = {"method": "ties", "sources": {"ft": {"weight": 0.5, "density": 0.5}}}
"""A recipe that needs a variant."""


def write_checkpoint(folder: Path, seed: int, **changes: torch.Tensor | None) -> Path:
    """Write a whole model of the tiny base's shapes; the seed decides its content.

    `changes` are other tensors by name, with `__` for dots; None leaves one out.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"{module}.weight" for module in tiny_base().linears]
    tensors = {n: torch.randn(SIZE, SIZE, generator=generator) for n in names}
    tensors["model.embed_tokens.weight"] = torch.randn(SIZE, SIZE, generator=generator)
    tensors["model.norm.weight"] = torch.randn(SIZE, generator=generator)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e4}))
    return folder


@dataclass(eq=False)
class FakeVariant:
    """Tensors by name."""

    digest: str
    tensors: Mapping[str, torch.Tensor]
    num_bytes: int
    num_packed: int = 0
    kv_bytes: int = 0

    def pack(self) -> None:
        self.num_packed += 1


@dataclass(eq=False)
class FakeUnfinished:
    """Tensors to write."""

    forge: "Forge"
    digest: str
    tensors: dict[str, torch.Tensor]
    layers: Sequence[int]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def finish(self) -> FakeVariant:
        assert self.forge.gate.wait(20), "the test holds the builds back for too long"
        if self.forge.error is not None:
            raise self.forge.error
        kv_bytes = self.forge.kv_bytes(self.layers)
        variant = FakeVariant(self.digest, self.tensors, self.num_bytes, kv_bytes=kv_bytes)
        self.forge.live.add(variant)
        self.forge.num_builds += 1
        return variant


@dataclass(eq=False)
class Forge:
    """A factory of fake variants. `gate` holds builds back while it is clear."""

    resident: CheckpointWeights
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: Exception | None = None
    num_builds: int = 0
    begun: "weakref.WeakSet[FakeUnfinished]" = field(default_factory=weakref.WeakSet)
    live: "weakref.WeakSet[FakeVariant]" = field(default_factory=weakref.WeakSet)

    def kv_bytes(self, layers: Sequence[int]) -> int:
        """Those of a layer more than the base has."""
        return KV_BYTES * max(0, len(layers) - 2)

    def start(self, digest: str, layers: Sequence[int], names: Collection[str]) -> FakeUnfinished:
        self.started.release()
        tensors = {name: torch.empty(self.resident.shapes[name]) for name in names}
        unfinished = FakeUnfinished(self, digest, tensors, layers)
        self.begun.add(unfinished)
        return unfinished

    def wait_for_start(self) -> None:
        """Wait until a build is under way."""
        assert self.started.acquire(timeout=20), "no build began"


class VariantWorld(World):
    """A world whose base has files, so that checkpoints and variants can be used."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.resident = open_checkpoint(write_checkpoint(root / "tiny", 1000))
        self.forge = Forge(self.resident)
        self.forge.gate.set()

    def checkpoint(self, name: str, seed: int, **changes: torch.Tensor | None) -> Path:
        """Write a checkpoint into the source folder."""
        return write_checkpoint(self.sources / name, seed, **changes)

    def open(
        self, *args, budget: int = 1 << 20, observer=None, held: bool = False, **options
    ) -> Catalog:
        """A catalog on what is there, as a restart of the server makes one. `held`: what it builds
        is held back.
        """
        self.forge.gate.set()
        self.close()
        if held:
            self.forge.gate.clear()
        self.cache = TrimCache(budget)
        self.variants = Variants(Workshop(self.forge, self.cache), budget, observer)
        options.setdefault("resident", self.resident)
        return super().open(
            *args, variants=self.variants, location=str(self.root / "tiny"), **options
        )

    def open_with_sources(self, **options) -> Catalog:
        """A catalog with the adapters math and code and the checkpoint ft."""
        catalog = super().open_with_sources(**options)
        catalog.add_source("ft", self.checkpoint("ft", 1))
        return catalog
