"""`mergeserve serve` as a process: it listens, serves, drains and ends with exit code 0."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.__main__ import main
from server.api.service import Service
from server.commands.serve import load
from server.engine.errors import ModelLoadError
from server.metrics import Metrics
from server.settings import Settings
from tests.models import save_tiny_model
from tests.server.api.live import wait_until
from tests.server.api.scripted import ScriptedEngine, tokenizer
from tests.server.presets.tiny import World


@pytest.fixture
def scripted(world: World, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What `serve` runs in this process, in place of a model."""
    engine = ScriptedEngine()
    catalog = world.open_with_sources()

    def load(settings: object, metrics: object) -> Service:
        return Service(engine, tokenizer(), catalog)  # type: ignore[arg-type]

    monkeypatch.setattr("server.commands.serve.load", load)
    monkeypatch.setattr("server.commands.serve.configure_logging", lambda log_format: None)
    return engine


def test_garbage_collections_skip_what_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded is not looked at by later garbage collections."""
    loaded = Service(ScriptedEngine(), tokenizer(), world.open_with_sources())  # type: ignore[arg-type]
    monkeypatch.setattr("server.commands.serve.load_service", lambda *given, progress: loaded)
    try:
        assert load(Settings(model="tiny"), Metrics()) is loaded
        assert not any(found is loaded for found in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(found is loaded for found in gc.get_objects())


def test_port_that_is_taken(
    scripted: ScriptedEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is taken since the command line was looked at ends it with the reason."""
    monkeypatch.setattr("server.commands.early._port", lambda host, port: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "acme/tiny", "--port", str(port)]) == 1
    assert "address already in use" in caplog.text


def test_model_that_cannot_be_loaded(
    scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that cannot be loaded ends the command with the reason."""

    def load(settings: object, metrics: object) -> Service:
        raise ModelLoadError("no config.json")

    monkeypatch.setattr("server.commands.serve.load", load)
    assert main(["serve", "acme/tiny", "--port", "0"]) == 1
    assert "no config.json" in caplog.text


def test_signals_of_this_process(scripted: ScriptedEngine) -> None:
    """SIGTERM ends the command with exit code 0, and leaves the signal's handler as it was."""
    before = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGTERM) is not before)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    assert main(["serve", "acme/tiny", "--port", "0"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


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
    command = [
        sys.executable,
        "-m",
        "server",
        "serve",
        str(model),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--kv-memory", "0.01"], stderr=file, env=environment)
    yield process, log
    process.kill()
    process.wait()


def test_life_of_a_server(serving: tuple[subprocess.Popen, Path], tmp_path: Path) -> None:
    """It listens before the model is loaded, logs JSON, and ends with exit code 0."""
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
    assert len(list((tmp_path / "data" / "mergeserve").glob("base-*.db"))) == 1
