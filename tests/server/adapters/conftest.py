"""A real server on a tiny base, and adapters on it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from server.adapters import reader
from server.adapters.peft_merge import merge
from server.adapters.request import MergeAnswer, MergeRequest
from server.app import create_app
from server.settings import Settings
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.server.adapters.peft_folders import KINDS, save_kind
from tests.server.api.scripted import Harness, running


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[MergeRequest]:
    """Merges in this process, as starting one takes seconds; what was asked for."""
    asked: list[MergeRequest] = []

    def merge_here(request: MergeRequest) -> MergeAnswer:
        asked.append(request)
        return merge(request)

    monkeypatch.setattr(reader, "merge_apart", merge_here)
    return asked


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., AbstractContextManager[Harness]]:
    def start(base: Path, **options: object) -> AbstractContextManager[Harness]:
        settings = Settings(
            model=str(base),
            dtype="float32",
            device="cpu",
            source_dir=[tmp_path],
            database_url=f"sqlite:///{tmp_path / 'presets.db'}",
            kv_memory=0.01,
            **options,
        )  # type: ignore[arg-type]
        return running(create_app(settings), None)  # type: ignore[arg-type]

    return start


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    base = save_tiny_model(tmp_path / "base", "llama-untied")
    save_adapter(tmp_path / "math", tiny_model("llama-untied"), seed=5, std=0.1)
    save_kind(tmp_path / "dora", base, KINDS["dora"][1])
    save_kind(tmp_path / "ia3", base, KINDS["ia3"][1])
    return base
