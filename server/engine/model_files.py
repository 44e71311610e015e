"""The files of a model: found, and read as transformers' objects."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from merging.adapter_config import FILE, read_config
from merging.checkpoint import read_header, weight_files, wrapper_of
from merging.errors import SourceError
from merging.regular_file import check_files
from server.engine.conversation import syntax_mistake
from server.engine.errors import ModelLoadError
from server.engine.location import local_folder
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
    """The folder of a model: the path itself, or a hub id's snapshot. Raises ModelLoadError."""
    if (folder := local_folder(model)) is not None:
        try:
            check_files(folder)
        except SourceError as error:
            raise ModelLoadError(str(error)) from error
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
    if (folder / FILE).exists() and not (folder / "config.json").exists():
        raise ModelLoadError(_adapter_as_base(folder))
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no config.json of a known model: {error}") from error


def auto_class(config: PreTrainedConfig) -> Any:
    """What makes the model of a config: a text model, or one that also takes images, of which the
    text model is served.
    """
    wraps_text = type(config) not in AutoModelForCausalLM._model_mapping
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if wraps_text and sees else AutoModelForCausalLM


def _wrapper(folder: Path) -> str:
    return wrapper_of(name for path in weight_files(folder) for name in read_header(path).entries)


def _adapter_as_base(folder: Path) -> str:
    """What to say to who names an adapter where a model is needed."""
    try:
        recorded = read_config(folder).base_name
    except SourceError:
        recorded = None
    base = "" if recorded is None else f"; it was trained on {recorded!r}"
    return (
        f"{folder} is an adapter, and not a model: name the model that it was trained on as MODEL, "
        f"and the adapter with --source NAME={folder}{base}"
    )


def load_network(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model of a folder; `ModelLoadError` unless every tensor came from its files."""
    config = load_config(folder)
    try:
        network, report = auto_class(config).from_pretrained(
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
    if wrapper := _wrapper(folder):
        raise ModelLoadError(
            f"the tensors in {folder} have names that begin with {wrapper!r}, as a wrapped model "
            "saves them, and transformers finds none of them: save the model inside the wrapper"
        )
    check_loaded(folder, network, report)
    return network.to(device)


def check_loaded(
    folder: Path, network: PreTrainedModel, report: Mapping[str, Collection[object]]
) -> None:
    """Raise `ModelLoadError` by name for tensors that transformers filled itself, or that have
    another shape in the files.

    Its report of missing keys leaves out those that a family allows to be missing; what came from
    a file, or is tied to what did, is marked.
    """
    made_up = {
        name
        for name, tensor in network.state_dict(keep_vars=True).items()
        if not getattr(tensor, "_is_hf_initialized", False)
    }
    problems = {
        "are not in its files": sorted(made_up | set(map(str, report["missing_keys"]))),
        "have another shape there": sorted(str(key) for key in report["mismatched_keys"]),
    }
    found = [f"{', '.join(names)} {what}" for what, names in problems.items() if names]
    if found:
        raise ModelLoadError(
            f"{folder} does not hold the whole model of its config.json: {'; '.join(found)}. "
            "Transformers would fill them with random values; complete the files, or mend the "
            "config"
        )


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
