"""How to load and bound an engine: what is asked for, and what follows for a model."""

import logging
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from server.engine.config import EngineConfig
from server.engine.errors import ModelLoadError
from server.engine.memory import GIB, free_bytes

logger = logging.getLogger(__name__)


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


def engine_config(
    config: PreTrainedConfig,
    options: EngineOptions,
    bytes_per_block: int,
    device: torch.device,
    exact_len: int | None,
) -> EngineConfig:
    """The limits of an engine for the model of `config`, of which a block of the KV cache takes
    `bytes_per_block` and which computes exactly up to `exact_len` tokens (None: all).
    """
    kv_bytes = (
        free_bytes(device) // 4 if options.kv_memory is None else int(options.kv_memory * GIB)
    )
    num_blocks = kv_bytes // bytes_per_block
    if num_blocks < 1:
        raise ModelLoadError(
            f"{kv_bytes} bytes of KV memory hold no block of {bytes_per_block}; raise --kv-memory"
        )
    text_config = config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "max_seq_len")  # MPT's
    longest = next((size for name in names if (size := getattr(text_config, name, None))), None)
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
        block_bytes=bytes_per_block,
    )
