"""Finds out what a model's layers keep in the KV cache, and checks that the engine computes what
transformers computes.

Any architecture may arrive. One that needs something that the engine does not know (an attention
bias, state beside keys and values) would give wrong text without an error, so a short prompt is run
both ways when a model is loaded.
"""

import logging
from collections.abc import Mapping

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from merging.blend import Blend
from server.engine.detokenizer import Detokenizer
from server.engine.errors import UnsupportedModelError, VariantError
from server.engine.group import Group
from server.engine.kv_cache import KVCache, LayerShape
from server.engine.model import BlendedModel, find_siblings, prepare
from server.engine.request import Member, Request, SamplingParams
from server.engine.runner import Runner
from server.engine.step_plan import RowWork
from server.engine.variant import Variant

logger = logging.getLogger(__name__)

CHUNKS = (11, 6, 1, 1, 1)
"""How the test prompt is cut: two prefill chunks, then decoding."""

NUM_TOKENS = sum(CHUNKS)
BLOCK_SIZE = 4
MAX_ERROR_FLOAT32 = 1e-3
MAX_ERROR_HALF = 0.05

FAILURES = (TypeError, AttributeError, RuntimeError, IndexError, KeyError, ValueError)
"""What transformers' layers raise where the engine is not what they expect. Their texts are about
Python, and are for the log.
"""


def _tokens(model: PreTrainedModel) -> list[int]:
    """Some valid token ids, the same each time."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    return [(7919 * i + 11) % vocab_size for i in range(NUM_TOKENS)]


def probe(model: PreTrainedModel) -> tuple[BlendedModel, int | None]:
    """Prepare `model` in place, and check it.

    Returns it with the length up to which the engine is exact (None for any). Raises
    `UnsupportedModelError`.
    """
    try:
        shapes = layer_shapes(model)
        with find_siblings(model) as siblings:
            expected = reference_logits(model)
        blended = prepare(model, siblings, shapes)
        windows = verify(blended, expected)
    except FAILURES as error:
        logger.debug("the engine cannot run %s", type(model).__name__, exc_info=True)
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: its layers call attention, the cache or "
            "each other in a way that the engine does not know"
        ) from error
    return blended, exact_len(model.config, windows)


def exact_len(config: PreTrainedConfig, windows: Mapping[int, int | None]) -> int | None:
    """The length up to which the engine computes what transformers does; None for any.

    `windows`: the sliding window that each layer asked attention for. A window that exists in
    transformers' masks alone never reaches us; LongRoPE changes its factors with the longest row.
    """
    config = config.get_text_config(decoder=True)
    limits = []
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings"))
        limits.append(getattr(config, "original_max_position_embeddings", None))
    if any(_has_window(config, layer) and window is None for layer, window in windows.items()):
        limits.append(getattr(config, "sliding_window", None))
        limits.append(getattr(config, "attention_chunk_size", None))
    return min((limit for limit in limits if limit is not None), default=None)


def _has_window(config: PreTrainedConfig, layer: int) -> bool:
    """Whether the config gives a layer a window of some kind."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding" in kinds[layer] or "chunked" in kinds[layer]
    if getattr(config, "use_sliding_window", True) is False:
        return False
    return getattr(config, "sliding_window", None) is not None


@torch.inference_mode()
def layer_shapes(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """What each layer of the unprepared `model` keeps for each token. Raises
    `UnsupportedModelError`.
    """
    cache = DynamicCache(config=model.config)
    token_ids = torch.tensor([_tokens(model)[:2]], device=model.device)
    model(input_ids=token_ids, past_key_values=cache, use_cache=True)
    shapes: list[LayerShape] = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4:
            raise UnsupportedModelError(
                f"layer {index} of {type(model).__name__} keeps {type(layer).__name__}, not plain "
                "keys and values: only decoder-only models with ordinary attention can be served"
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    return tuple(shapes)


@torch.inference_mode()
def reference_logits(model: PreTrainedModel) -> torch.Tensor:
    """Transformers' own logits of the test prompt, float32 [tokens, vocab]; before `prepare`."""
    token_ids = torch.tensor([_tokens(model)], device=model.device)
    logits: torch.Tensor = model(input_ids=token_ids, use_cache=False).logits[0]
    return logits.float()


def verify(model: BlendedModel, expected: torch.Tensor) -> Mapping[int, int | None]:
    """Raise `UnsupportedModelError` unless the engine gives `expected` too, over prefill chunks and
    decoding. Returns the sliding window that each layer asked for.
    """
    actual, windows = _engine_logits(model)
    error = float((actual - expected).norm() / expected.norm())
    limit = MAX_ERROR_FLOAT32 if model.dtype == torch.float32 else MAX_ERROR_HALF
    if not error <= limit:
        raise UnsupportedModelError(
            f"{type(model.model).__name__} cannot be served: the engine's logits differ from "
            f"transformers' by {error:.2g} of their norm, and at most {limit:g} is rounding. "
            "Its attention is probably of a kind that the engine does not know"
        )
    return windows


def check_variant(variant: Variant) -> None:
    """Raise `VariantError` unless a short prompt passes through all layers and gives finite logits.

    It has a KV cache of its own, and a variant shares nothing that a forward changes with the base.
    So it may run on any thread beside the engine, until the variant is handed to the engine.
    """
    try:
        logits, windows = _engine_logits(variant.model)
    except FAILURES as error:
        logger.error("the merged model cannot be run", exc_info=True)
        raise VariantError(
            "the merged model cannot be run: its layers do not fit together; the log has the cause"
        ) from error
    num_layers = len(variant.model.shapes)
    if len(windows) != num_layers:
        raise VariantError(f"only {len(windows)} of the merged model's {num_layers} layers are run")
    if not torch.isfinite(logits).all():
        raise VariantError("the merged model gives logits that are not finite")


def _engine_logits(model: BlendedModel) -> tuple[torch.Tensor, Mapping[int, int | None]]:
    """The test prompt's logits through the engine's own path, float32 [tokens, vocab]."""
    num_blocks = -(-NUM_TOKENS // BLOCK_SIZE)
    cache = KVCache(model.shapes, num_blocks, BLOCK_SIZE, model.dtype, model.device)
    runner = Runner(model, cache)
    blend = Blend("", (), torch.zeros(0, len(model.linears)))
    request = Request(
        (Member(tuple(_tokens(model.model)), blend),), SamplingParams(prompt_logprobs=0)
    )
    group = Group(request, Detokenizer(lambda token_ids: "", (), ()))
    row = group.rows[0]
    row.block_table = list(range(num_blocks))
    parts = []
    for num_tokens in CHUNKS:
        parts.append(runner.forward([RowWork(group, row, num_tokens)])[row])
        row.num_computed += num_tokens
        group.num_unread -= num_tokens
    return torch.cat(parts), runner.windows
