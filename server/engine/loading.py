"""From a model folder or hub id to an engine that can serve it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from merging.adapter import BaseTensor
from merging.base import Base
from merging.checkpoint_check import check_base
from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.models import Models
from server.engine.device import pick_device, pick_dtype
from server.engine.engine import Engine
from server.engine.kv_cache import KVCache, bytes_per_token
from server.engine.model import describe
from server.engine.model_files import (
    Progress,
    load_config,
    load_network,
    load_tokenizer,
    model_folder,
    model_id,
)
from server.engine.options import EngineOptions, engine_config
from server.engine.probe import probe
from server.engine.runner import Runner
from server.engine.stats import EngineObserver
from server.engine.tokenizer import Tokenizer
from server.engine.variant import VariantFactory


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
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    check_base(folder)
    progress("hashing the base", 0, 0)
    weights = open_checkpoint(
        folder.resolve(), lambda done, total: progress("hashing the base", done, total)
    )
    progress("loading the base", 0, 0)
    network = load_network(folder, dtype, device)
    name = options.served_model_name or model_id(model)
    base = describe(network, name=name, digest=weights.digest, dtype=dtype)
    tokenizer = load_tokenizer(folder, network, options.chat_template)
    weights = under_model_names(weights, base)
    base_tensor = Models(base, weights, {}).base_tensor
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
    config = engine_config(network.config, options, per_block, blended.device, exact_len)
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
    config = load_config(folder)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return describe(network, name=model_id(model), digest="", dtype=torch.float32)
