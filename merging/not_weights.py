"""What a folder or file is that holds no weights which can be read, and the way out."""

import os
from pathlib import Path
from typing import Final

PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
NUM_NAMED: Final = 8


def no_weights(folder: Path) -> str:
    """Why a folder without safetensors cannot be used."""
    try:
        files = sorted(path for path in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
    below = [path for path in files if path.is_dir() and _holds_weights(path)]
    pickles = [path.name for path in files if path.suffix in PICKLES]
    ggufs = [path for path in files if path.suffix == ".gguf"]
    if pickles:
        return pickle_reason(folder, pickles)
    if below:
        named = " or ".join(str(path) for path in below[:NUM_NAMED])
        return f"{folder} holds no .safetensors file, but folders in it do: name {named}"
    if ggufs:
        return gguf_reason(ggufs[0])
    if (folder / "adapters.npz").exists():
        return (
            f"{folder} holds an adapter of an old MLX, adapters.npz: save its tensors as "
            "adapters.safetensors, beside an adapter_config.json with lora_parameters"
        )
    return f"{folder} holds no .safetensors file"


def not_a_folder(path: Path) -> str:
    """Why a path cannot be a model or a source."""
    if path.suffix == ".gguf" and os.path.exists(path):
        return gguf_reason(path)
    if os.path.exists(path):
        return f"{path} is a file: name the folder that holds the model or adapter"
    return f"{path} is not a folder"


def gguf_reason(path: Path) -> str:
    """Why a GGUF file cannot be used, and what to do."""
    return (
        f"{path} is a GGUF file, and models are read as safetensors; convert it with transformers: "
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}, "
        "quantization_config=GgufConfig(dequantize=True)).save_pretrained(NEW), and the same of "
        "AutoTokenizer without the quantization_config; then name the folder NEW"
    )


def pickle_reason(folder: Path, names: list[str]) -> str:
    """Why weights in pickle cannot be used, and what to do."""
    if any(name.startswith("adapter_model") for name in names):
        way = "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(NEW) of a current peft"
    else:
        way = (
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) of a current "
            "transformers"
        )
    return (
        f"{folder} holds its weights as pickle ({', '.join(names[:NUM_NAMED])}), which can run "
        f"code when it is opened; convert it to safetensors where you trust it: {way}"
    )


def _holds_weights(folder: Path) -> bool:
    try:
        return any(name.endswith(".safetensors") for name in os.listdir(folder))
    except OSError:
        return False
