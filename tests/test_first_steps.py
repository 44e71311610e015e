"""docs/first-steps.md, followed to the letter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.fresh.readme import indented_blocks
from scripts.fresh.serving import free_port
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-steps.md"


def script(folder: Path, port: int) -> str:
    """All commands of the page, for files and a port of the test."""
    text = "\n".join(indented_blocks(PAGE.read_text("utf-8")))
    text = text.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    text = text.replace("8000", str(port)).replace("serve $BASE", f"serve $BASE --port {port}")
    text = text.replace("examples/", f"{ROOT}/examples/")
    for name in ("models/base", "adapters/math", "adapters/code"):
        text = text.replace(f"=/{name}", f"={folder}/{name}")
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny base and two adapters of it, and an empty home."""
    (tmp_path / "home").mkdir()
    save_tiny_model(tmp_path / "models" / "base")
    for seed, name in enumerate(("math", "code")):
        save_adapter(tmp_path / "adapters" / name, tiny_model(), seed=seed)
    return tmp_path


@pytest.mark.timeout(900)
def test_every_command_works(folder: Path) -> None:
    """Each command of the page works after those before it, and what it promises is there."""
    port = free_port()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "MERGESERVE_URL": f"http://127.0.0.1:{port}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", f"trap 'kill 0' ERR\n{script(folder, port)}"],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        start_new_session=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "tutor@1" in said
    assert '"revision":3' in said
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "OUT" / "adapter_model.safetensors").is_file()
