"""Finds out what a model's layers keep in the KV cache and which attention can serve it, and checks
that the engine computes what transformers computes.

Any architecture may arrive. One that needs something that the engine does not know (an attention
bias, state beside keys and values) would give wrong text without an error, so a short prompt is run
both ways when a model is loaded, windows made shorter than it: first with our attention, then,
where that is not the same, with the family's own.
"""

import logging
from collections.abc import Collection, Sequence

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from server.engine.errors import EngineError, UnsupportedModelError, VariantError
from server.engine.kv_cache import LayerShape
from server.engine.model import BlendedModel, find_siblings, prepare
from server.engine.trial import INTERNAL_ERRORS, check_logits, engine_logits, reference_logits
from server.engine.variant import Variant
from server.engine.windows import narrow_windows

logger = logging.getLogger(__name__)

NUM_TOKENS = 20
SEE = "docs/models.md lists the families that can be served"


def probe(model: PreTrainedModel) -> tuple[BlendedModel, int | None]:
    """Prepare `model` in place, and check it.

    Returns it with the length up to which the engine is exact (None for any). Raises
    `UnsupportedModelError`.
    """
    token_ids = prompt_for(model)
    try:
        shapes = layer_shapes(model)
        with find_siblings(model) as siblings, narrow_windows(model):
            expected = reference_logits(model, token_ids)
        blended = prepare(model, siblings, shapes)
    except INTERNAL_ERRORS as error:
        logger.debug("what went wrong", exc_info=True)
        raise UnsupportedModelError(
            f"{_name(model)} cannot be served: it does not run as a decoder that takes token ids "
            f"and keeps keys and values. {SEE}"
        ) from error
    with narrow_windows(model):
        choose_attention(blended, token_ids, expected)
    return blended, exact_len(model.config)


def choose_attention(model: BlendedModel, token_ids: Sequence[int], expected: torch.Tensor) -> None:
    """Our attention if it gives `expected`, else the family's own; `UnsupportedModelError` if that
    does not either.
    """
    try:
        model.use_attention(is_packed=True)
        check_layers(model, check_logits(model, token_ids, expected))
    except (EngineError, *INTERNAL_ERRORS):
        logger.debug("%s runs its own attention", _name(model.model), exc_info=True)
    else:
        return
    logger.info(
        "%s runs its own attention, one forward for rows of one length and preset: exact, but "
        "slower than packed steps",
        _name(model.model),
    )
    try:
        model.use_attention(is_packed=False)
        check_logits(model, token_ids, expected)
    except INTERNAL_ERRORS as error:
        logger.debug("what went wrong", exc_info=True)
        raise UnsupportedModelError(
            f"{_name(model.model)} cannot be served: its attention needs more than the keys and "
            f"values of the tokens before. {SEE}"
        ) from error


def prompt_for(model: PreTrainedModel) -> list[int]:
    """Some valid token ids, the same each time."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    return [(7919 * i + 11) % vocab_size for i in range(NUM_TOKENS)]


def exact_len(config: PreTrainedConfig) -> int | None:
    """The length up to which the engine computes what transformers does; None for any: LongRoPE
    changes its factors with the longest row.
    """
    config = config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    limits = (
        rope.get("original_max_position_embeddings"),
        getattr(config, "original_max_position_embeddings", None),
    )
    return min((limit for limit in limits if limit is not None), default=None)


@torch.inference_mode()
def layer_shapes(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """What each layer of the unprepared `model` keeps for each token; nothing where it reads the
    keys and values of another layer. Raises `UnsupportedModelError`.
    """
    cache = DynamicCache(config=model.config)
    token_ids = torch.tensor([prompt_for(model)[:2]], device=model.device)
    model(input_ids=token_ids, past_key_values=cache, use_cache=True)
    return tuple(_shape(model, index, layer) for index, layer in enumerate(cache.layers))


def _shape(model: PreTrainedModel, index: int, layer: object) -> LayerShape:
    if type(layer) is DummyLayer:
        return LayerShape(0, 0, 0)
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        keys, values = layer.keys, layer.values  # type: ignore[attr-defined]
        if keys is not None and keys.ndim == values.ndim == 4:
            return LayerShape(keys.shape[1], keys.shape[3], values.shape[3])
        raise UnsupportedModelError(
            f"{_name(model)} cannot be served: its layers do not put the keys and values of each "
            f"token into transformers' cache, from where the engine takes them. {SEE}"
        )
    raise UnsupportedModelError(
        f"{_name(model)} cannot be served: layer {index} keeps more or other than the keys and "
        f"values of each token (a recurrent state, an index; transformers' {type(layer).__name__}),"
        f" and the engine keeps nothing else. {SEE}"
    )


def check_variant(variant: Variant) -> None:
    """Raise `VariantError` unless a short prompt passes through all layers and gives finite logits.

    It has a KV cache of its own, and a variant shares nothing that a forward changes with the base.
    So it may run on any thread beside the engine, until the variant is handed to the engine.
    """
    try:
        logits, layers = engine_logits(variant.model, prompt_for(variant.model.model))
    except INTERNAL_ERRORS as error:
        logger.debug("what went wrong", exc_info=True)
        raise VariantError(
            "the merged model cannot be run: its tensors or layers do not fit each other"
        ) from error
    check_layers(variant.model, layers)
    if not torch.isfinite(logits).all():
        raise VariantError("the merged model gives logits that are not finite")


def check_layers(model: BlendedModel, run: Collection[int]) -> None:
    """Raise `VariantError` unless the layers `run` are all that keep something."""
    keeping = [layer for layer, shape in enumerate(model.shapes) if shape.num_values > 0]
    if missing := sorted(set(keeping) - set(run)):
        raise VariantError(
            f"only {len(keeping) - len(missing)} of the model's {len(keeping)} layers are run "
            f"(not layers {missing})"
        )


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
