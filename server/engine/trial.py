"""A test prompt through the engine and through transformers, and whether both say the same."""

from collections.abc import Collection, Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from merging.blend import Blend
from server.engine.detokenizer import Detokenizer
from server.engine.errors import UnsupportedModelError
from server.engine.float32 import in_float32
from server.engine.group import Group
from server.engine.kv_cache import KVCache
from server.engine.model import BlendedModel
from server.engine.request import Member, Request, SamplingParams
from server.engine.runner import Runner
from server.engine.step_plan import RowWork

INTERNAL_ERRORS: Final = (
    TypeError,
    AttributeError,
    RuntimeError,
    IndexError,
    KeyError,
    ValueError,
    AssertionError,
    NotImplementedError,
)
"""What a forward raises that is not of the kind that it is taken for."""

LAST_CHUNKS = (6, 1, 1, 1)
"""How the end of the test prompt is cut: a second prefill chunk, then decoding."""

BLOCK_SIZE = 4
MAX_ERROR_FLOAT32 = 1e-3
MAX_ERROR_HALF = 0.05
MAX_NOISE = 2.0
"""How many times transformers' own rounding ours may be, where the model itself amplifies it."""


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """The logits of a prompt by the family's own attention without a cache, float32 [tokens,
    vocab].
    """
    inputs = torch.tensor([list(token_ids)], device=model.device)
    logits: torch.Tensor = model(input_ids=inputs, use_cache=False).logits[0]
    return logits.float()


def check_logits(
    model: BlendedModel, token_ids: Sequence[int], expected: torch.Tensor
) -> Collection[int]:
    """Raise `UnsupportedModelError` unless the engine gives `expected` too, over prefill chunks and
    decoding. Returns the layers that were run.
    """
    actual, layers = engine_logits(model, token_ids)
    error = _distance(actual, expected)
    is_half = model.dtype != torch.float32
    limit = MAX_ERROR_HALF if is_half else MAX_ERROR_FLOAT32
    if error <= limit or (is_half and _is_rounding(model, token_ids, expected, actual)):
        return layers
    raise UnsupportedModelError(
        f"{type(model.model).__name__} cannot be served: the engine's logits differ from "
        f"transformers' by {error:.2g} of their norm, which is more than rounding ({limit:g}). "
        "Its attention is of a kind that the engine does not know"
    )


def _is_rounding(
    model: BlendedModel, token_ids: Sequence[int], expected: torch.Tensor, actual: torch.Tensor
) -> bool:
    """Whether `actual` is as near to the truth as transformers' own `expected` is, and the engine
    computes the truth where nothing is rounded.

    Some weights amplify rounding: then the two differ although nothing is wrong.
    """
    is_packed = model.is_packed
    with in_float32(model):
        ours, _ = engine_logits(model, token_ids, torch.float32)
        model.use_attention(is_packed=False)
        try:
            truth = reference_logits(model.model, token_ids)
        finally:
            model.use_attention(is_packed=is_packed)
    noise = _distance(expected, truth)
    return (
        _distance(ours, truth) <= MAX_ERROR_FLOAT32
        and _distance(actual, truth) <= MAX_NOISE * noise
    )


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def engine_logits(
    model: BlendedModel, token_ids: Sequence[int], dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, Collection[int]]:
    """A prompt's logits through the engine's own path, float32 [tokens, vocab], and the layers that
    were run. `dtype`: of the KV cache, if it is not the model's.
    """
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    cache = KVCache(model.shapes, num_blocks, BLOCK_SIZE, dtype or model.dtype, model.device)
    runner = Runner(model, cache)
    blend = Blend("", (), torch.zeros(0, len(model.linears)))
    request = Request((Member(tuple(token_ids), blend),), SamplingParams(prompt_logprobs=0))
    group = Group(request, Detokenizer(lambda token_ids: "", (), ()))
    row = group.rows[0]
    row.block_table = list(range(num_blocks))
    parts = []
    for num_tokens in (len(token_ids) - sum(LAST_CHUNKS), *LAST_CHUNKS):
        parts.append(runner.forward([RowWork(group, row, num_tokens)])[row])
        row.num_computed += num_tokens
        group.num_unread -= num_tokens
    return torch.cat(parts), runner.layers
