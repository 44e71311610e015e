"""`mergeserve inspect`."""

from pathlib import Path

import pytest

from server.__main__ import main
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model


def test_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter is described, alone and against a base whose weights are not loaded."""
    folder = save_adapter(tmp_path / "math", tiny_model())
    base = save_tiny_model(tmp_path / "tiny")
    (base / "model.safetensors").unlink()
    assert main(["inspect", str(folder)]) == 0
    assert "an adapter" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--model", str(base)]) == 0
    assert "it fits" in capsys.readouterr().out


def test_base_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base that cannot be read is one line and exit code 1."""
    assert main(["inspect", str(tmp_path), "--model", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
