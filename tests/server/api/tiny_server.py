"""A real server over a tiny model and two adapters."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from server.app import create_app
from server.settings import Settings
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.server.api.scripted import Harness, running


def tiny_server(
    root: Path, presets: Sequence[dict[str, Any]], **options: Any
) -> AbstractContextManager[Harness]:
    """A server in `root` with the adapters math and code, these presets, and other `options`."""
    save_tiny_model(root / "tiny")
    for seed, name in enumerate(("math", "code")):
        save_adapter(root / name, tiny_model(), seed=seed, std=0.3)
    (root / "presets.yaml").write_text(yaml.safe_dump(list(presets)))
    settings = Settings(
        model=str(root / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"{name}={root / name}" for name in ("math", "code")],
        presets=root / "presets.yaml",
        database_url=f"sqlite:///{root / 'presets.db'}",
        kv_memory=0.01,
        **options,
    )  # type: ignore[arg-type]
    return running(create_app(settings), None)  # type: ignore[arg-type]
