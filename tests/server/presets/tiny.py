"""A tiny base, tiny adapters, and a folder in which catalogs are opened again and again."""

import json
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file

from merging.base import Base, Linear
from server.presets.catalog import Catalog
from server.presets.document import PresetDocument, parse_document
from server.presets.policy import Policy
from server.presets.record import StoredRevision
from server.presets.store import PresetStore

KINDS = ("self_attn.q_proj", "mlp.up_proj")
SIZE = 4
OPEN_POLICY = Policy(overrides="weights", inline_recipes="blend", serve_sources=True)
CLOSED_POLICY = Policy(overrides="none", inline_recipes="off", serve_sources=False)


def digest(character: str) -> str:
    """A digest that is easy to tell from others."""
    return f"sha256:{character * 64}"


def tiny_base(name: str = "tiny", character: str = "0", num_layers: int = 2) -> Base:
    """A base of two layers with two linears each."""
    linears = {
        f"model.layers.{layer}.{kind}": Linear(SIZE, SIZE)
        for layer in range(num_layers)
        for kind in KINDS
    }
    return Base(name, digest(character), "float32", num_layers, linears)


def write_adapter(folder: Path, seed: int, *, rank: int = 2, base_digest: str = "") -> Path:
    """Write a PEFT adapter on every linear of the tiny base; the seed decides its content."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in tiny_base().linears:
        for letter, shape in (("A", (rank, SIZE)), ("B", (SIZE, rank))):
            key = f"base_model.model.{module}.lora_{letter}.weight"
            tensors[key] = torch.randn(shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"base_digest": base_digest} if base_digest else None
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def preset(name: str = "tutor", **fields: object) -> PresetDocument:
    """A document; its one source is math at 0.5 unless the fields say otherwise."""
    return parse_document({"name": name, "sources": {"math": {"weight": 0.5}}, **fields})


def reading_threads(catalog: Catalog) -> list[int]:
    """The thread of every read of an old revision from now on, as it comes."""
    threads: list[int] = []
    read = catalog._store.revision

    def noted(name: str, revision: int) -> StoredRevision | None:
        threads.append(threading.get_ident())
        return read(name, revision)

    catalog._store.revision = noted  # type: ignore[method-assign]
    return threads


class World:
    """A database and source folders that outlive the catalogs opened on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = root / "sources"
        self.sources.mkdir(exist_ok=True)
        self.url = f"sqlite:///{root / 'catalog.db'}"
        self._catalog: Catalog | None = None
        self.store = PresetStore(self.url)

    def adapter(self, name: str, seed: int) -> Path:
        """Write an adapter into the source folder."""
        return write_adapter(self.sources / name, seed)

    def open(self, base: Base | None = None, policy: Policy = OPEN_POLICY, **options) -> Catalog:
        """A catalog on what is there, as a restart of the server makes one."""
        self.close()
        self.store = PresetStore(self.url)
        options.setdefault("source_dirs", [self.sources])
        self._catalog = Catalog(self.store, base or tiny_base(), policy=policy, **options)
        self._catalog.load()
        return self._catalog

    def open_with_sources(self, **options) -> Catalog:
        """A catalog with the sources math and code."""
        catalog = self.open(**options)
        for seed, name in enumerate(("math", "code")):
            catalog.add_source(name, self.adapter(name, seed))
        return catalog

    @property
    def catalog(self) -> Catalog:
        """The catalog that is open."""
        assert self._catalog is not None
        return self._catalog

    def close(self) -> None:
        """Close what is open."""
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None
        self.store.close()
