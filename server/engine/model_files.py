"""The files of a model: found, and read as transformers' objects."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from merging.adapter import BaseTensor
from merging.checkpoint_weights import CheckpointWeights
from server.engine.conversation import syntax_mistake
from server.engine.errors import ModelLoadError
from server.engine.stop_tokens import known_tokens, stop_tokens_in_files
from server.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is (bytes, or 0 of 0
when unknown).
"""


def model_id(model: str | Path) -> str:
    """The id of a model in the API: the hub id, or the folder's name."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else str(model)


def model_folder(model: str | Path, progress: Progress) -> Path:
    """The folder of a model: the path itself, or a hub id's snapshot."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise ModelLoadError(f"{model!s} is not a folder with a model")
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
    """The tokenizer of a model folder; what ends an answer comes from it and from the configs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    if chat_template and (mistake := syntax_mistake(tokenizer, chat_template)):
        raise ModelLoadError(f"the template of --chat-template {mistake}")
    vocab_size = network.get_input_embeddings().weight.shape[0]
    made = Tokenizer(
        tokenizer,
        vocab_size=vocab_size,
        eos_token_ids=known_tokens(_stop_tokens(folder, tokenizer), vocab_size, folder),
        chat_template=chat_template,
    )
    if made.template_problem is not None:
        logger.warning(
            "%s: its chat template cannot be used, so conversations are refused: %s; give one with "
            "--chat-template FILE",
            folder,
            made.template_problem,
        )
    return made


def _stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What the tokenizer and the configs call the end, together."""
    own = tokenizer.eos_token_id
    try:
        return {*stop_tokens_in_files(folder), *(() if own is None else (own,))}
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def tensor_reader(weights: CheckpointWeights, network: PreTrainedModel) -> BaseTensor:
    """A function that reads tensors of the base by name; a tied head's name gives the embedding."""
    names = {id(module): name for name, module in network.named_modules()}
    head, embedding = (
        f"{names.get(id(module))}.weight"
        for module in (network.get_output_embeddings(), network.get_input_embeddings())
    )

    def read(name: str) -> torch.Tensor | None:
        own = embedding if name == head and name not in weights.shapes else name
        return weights.tensor(own) if own in weights.shapes else None

    return read
