"""From a model folder or hub id to an engine that can serve it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
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
from transformers.utils.logging import disable_progress_bar

from merging.adapter import BaseTensor
from merging.base import Base
from merging.checkpoint_check import check_base
from merging.checkpoint_fit import under_base_names
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from server.engine.config import EngineConfig
from server.engine.engine import Engine
from server.engine.errors import ModelLoadError
from server.engine.kv_cache import KVCache, bytes_per_token
from server.engine.memory import GIB, free_bytes
from server.engine.model import describe
from server.engine.probe import probe
from server.engine.runner import Runner
from server.engine.stats import EngineObserver
from server.engine.tokenizer import Tokenizer
from server.engine.variant import VariantFactory

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is (bytes, or 0 of 0
when unknown).
"""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to load and bound an engine. None means: find out."""

    device: str = "auto"
    dtype: str = "auto"
    max_rows: int = 64
    max_model_len: int | None = None
    max_queued: int = 256
    kv_memory: float | None = None  # GiB
    block_size: int = 16
    max_step_tokens: int | None = None
    num_threads: int | None = None
    served_model_name: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model that is ready to serve.

    `weights` are the base's own files, and `base_tensor` reads one tensor of them, by its name in
    the model.
    `variants` makes other weights for the engine's rows.
    """

    engine: Engine
    variants: VariantFactory
    tokenizer: Tokenizer
    base: Base
    base_tensor: BaseTensor
    weights: CheckpointWeights


def load_engine(
    model: str | Path,
    options: EngineOptions,
    *,
    progress: Progress = lambda what, done, total: None,
    observer: EngineObserver | None = None,
) -> LoadedModel:
    """Load, check and prepare a model.

    Raises `ModelLoadError` or `UnsupportedModelError`, and `SourceError` if its files cannot be
    read, or are quantised, so that nothing can be merged with them.
    """
    disable_progress_bar()  # transformers' own; `progress` says what is going on
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    folder = model_folder(model, progress)
    device, dtype = pick_device(options.device), torch.float32
    dtype = pick_dtype(options.dtype, device)
    check_base(folder)
    progress("hashing the base", 0, 0)
    weights = open_checkpoint(
        folder.resolve(), lambda done, total: progress("hashing the base", done, total)
    )
    progress("loading the base", 0, 0)
    network = _load_network(folder, dtype, device)
    name = options.served_model_name or model_id(model)
    base = describe(network, name=name, digest=weights.digest, dtype=dtype)
    tokenizer = load_tokenizer(folder, network, options.chat_template)
    weights = under_base_names(weights, base)
    base_tensor = tensor_reader(weights, network)
    engine, variants = build_engine(network, tokenizer, options, observer)
    return LoadedModel(engine, variants, tokenizer, base, base_tensor, weights)


def build_engine(
    network: PreTrainedModel,
    tokenizer: Tokenizer,
    options: EngineOptions,
    observer: EngineObserver | None = None,
) -> tuple[Engine, VariantFactory]:
    """Prepare `network` in place and build its engine, and what makes variants for it; checks first
    that the engine computes what transformers does.
    """
    network.eval()
    blended, exact_len = probe(network)
    per_block = bytes_per_token(blended.shapes, blended.dtype) * options.block_size
    config = _engine_config(network.config, options, per_block, blended.device, exact_len)
    cache = KVCache(
        blended.shapes, config.num_blocks, config.block_size, blended.dtype, blended.device
    )
    engine = Engine(
        Runner(blended, cache, max_active_rank=config.max_active_rank),
        config,
        decode=tokenizer.decode_visible,
        eos_token_ids=tokenizer.eos_token_ids,
        observer=observer,
    )
    return engine, VariantFactory(blended, cache)


def describe_base(model: str | Path) -> Base:
    """What merging must know of a base, from its config alone: no weights are loaded, and its
    digest is empty.
    """
    folder = model_folder(model, lambda what, done, total: None)
    config = _load_config(folder)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return describe(network, name=model_id(model), digest="", dtype=torch.float32)


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


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelLoadError(
            f"device {device!r}: this machine, or this build of torch, has no CUDA"
        )
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it, else float32."""
    if dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[
            dtype
        ]
    if device.type == "cuda":
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        computes = "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags
    return torch.bfloat16 if computes else torch.float32


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


def _load_config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no config.json of a known model: {error}") from error


def _load_network(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    config = _load_config(folder)
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


def _engine_config(
    config: PreTrainedConfig,
    options: EngineOptions,
    bytes_per_block: int,
    device: torch.device,
    exact_len: int | None,
) -> EngineConfig:
    kv_bytes = (
        free_bytes(device) // 4 if options.kv_memory is None else int(options.kv_memory * GIB)
    )
    num_blocks = kv_bytes // bytes_per_block
    if num_blocks < 1:
        raise ModelLoadError(
            f"{kv_bytes} bytes of KV memory hold no block of {bytes_per_block}; raise --kv-memory"
        )
    text_config = config.get_text_config(decoder=True)
    longest = getattr(text_config, "max_position_embeddings", None)
    wanted = options.max_model_len or longest or 2048
    if longest is not None and wanted > longest:
        raise ModelLoadError(
            f"--max-model-len {wanted} is more than the model's {longest} positions"
        )
    if exact_len is not None and wanted > exact_len:
        logger.warning(
            "max_model_len is lowered from %d to %d: beyond that this model does what the engine "
            "does not (a window of its own, or rotary factors that change with the length)",
            wanted,
            exact_len,
        )
        wanted = exact_len
    room = num_blocks * options.block_size
    if wanted > room:
        logger.warning(
            "max_model_len is lowered from %d to the %d tokens of the KV cache", wanted, room
        )
    num_blocks = min(num_blocks, options.max_rows * -(-wanted // options.block_size))
    return EngineConfig(
        max_model_len=min(wanted, room),
        num_blocks=num_blocks,
        block_size=options.block_size,
        max_rows=options.max_rows,
        max_queued=options.max_queued,
        max_step_tokens=options.max_step_tokens or max(256, options.max_rows + 128),
    )
