"""`mergeserve serve` as a process: it listens, serves, drains and ends with exit code 0."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.models import save_tiny_model
from tests.server.api.live import wait_until


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without settings, and with a data folder of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MERGESERVE_")}
    return {**kept, "XDG_DATA_HOME": str(tmp_path / "data"), "MERGESERVE_LOG_FORMAT": "json"}


@pytest.fixture
def serving(tmp_path: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen, Path]]:
    """The process, and the file that its log goes to."""
    model = save_tiny_model(tmp_path / "tiny")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", "0", "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--kv-memory", "0.01"], stderr=file, env=environment)
    yield process, log
    process.kill()
    process.wait()


def test_life_of_a_server(serving: tuple[subprocess.Popen, Path], tmp_path: Path) -> None:
    """It listens before the model is loaded, logs JSON lines, and SIGTERM ends it with exit code 0."""
    process, log = serving
    # Importing torch can take most of a minute where processors are shared.
    wait_until(lambda: "listening" in log.read_text() or process.poll() is not None, patience=200)
    found = re.search(r"listening on (http://\S+?);", log.read_text())
    assert found is not None, log.read_text()
    url = found[1]
    assert httpx.get(f"{url}/healthz").status_code == 200
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
    assert httpx.post(f"{url}/v1/completions", json=body).json()["usage"]["completion_tokens"] == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    requests = [line for line in lines if line.get("path") == "/v1/completions"]
    assert requests[0]["status"] == 200
    assert requests[0]["level"] == "INFO"
    assert (tmp_path / "data" / "mergeserve" / "tiny.db").exists()
