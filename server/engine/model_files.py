"""The files of a model: found, and read as transformers' objects."""

from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from server.engine.errors import ModelLoadError
from server.engine.location import local_folder
from server.engine.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is (bytes, or 0 of 0
when unknown).
"""


def model_id(model: str | Path) -> str:
    """The id of a model in the API: the hub id, or the folder's name."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else str(model)


def model_folder(model: str | Path, progress: Progress) -> Path:
    """The folder of a model: the path itself, or a hub id's snapshot. Raises ModelLoadError."""
    if (folder := local_folder(model)) is not None:
        return folder
    progress(f"downloading {model}", 0, 0)
    try:
        return Path(
            snapshot_download(
                str(model),
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"{model!s} is neither a folder nor a model that the hub gives: {error}"
        ) from error


def load_config(folder: Path) -> PreTrainedConfig:
    """The config of a model folder."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no config.json of a known model: {error}") from error


def load_network(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model of a folder; `ModelLoadError` unless it holds all tensors."""
    config = load_config(folder)
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{folder} cannot be loaded as a causal language model: {error}"
        ) from error
    problems = {
        key: sorted(map(str, report[key]))
        for key in ("missing_keys", "mismatched_keys")
        if report[key]
    }
    if problems:
        raise ModelLoadError(f"{folder} does not hold the whole model: {problems}")
    return network.to(device)


def load_tokenizer(folder: Path, network: PreTrainedModel, chat_template: str | None) -> Tokenizer:
    """The tokenizer of a model folder; stop tokens come from the model's generation config."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    return Tokenizer(
        tokenizer,
        vocab_size=network.get_input_embeddings().weight.shape[0],
        eos_token_ids=_eos_token_ids(network.generation_config, tokenizer.eos_token_id),
        chat_template=chat_template,
    )


def _eos_token_ids(config: GenerationConfig | None, fallback: int | None) -> frozenset[int]:
    eos = config.eos_token_id if config is not None else None
    if eos is None:
        eos = fallback
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
