"""The one attention function that mergeserve registers with transformers.

The registry is process-wide, the function keeps no state: the step's `Batch`, with the KV cache in
it, is in the `Step` of the model, which `prepare` hands to every attention module.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface

from server.engine.blended import Step

IMPLEMENTATION = "mergeserve"
STEP = "mergeserve_step"


def register() -> None:
    """Make the function known to transformers; registering twice is harmless."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)


def connect(model: nn.Module, step: Step) -> None:
    """Let the attention of `model` read `step`: whatever knows its layer may be attention.

    Keyword arguments of the forward would be simpler, but some families do not pass them on.
    """
    for module in model.modules():
        if getattr(module, "layer_idx", None) is not None:
            setattr(module, STEP, step)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values, then attend, row by row of the packed step.

    `query`: [1, heads, tokens, dim]; `key`, `value`: [1, kv_heads, tokens, dim]. Returns [1,
    tokens, heads, dim]. Sliding windows, soft caps and sinks (`s_aux`: [heads], what each head may
    give to no key) are ours to apply.
    """
    step: Step = getattr(module, STEP)
    batch, layer = step.batch, int(module.layer_idx)  # type: ignore[arg-type]
    assert batch is not None, "the runner sets it"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    batch.written.add(layer)
    place = batch.layers[layer]
    batch.cache.write(place, batch.slots, key[0], value[0])
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for bucket in batch.buckets:
        keys, values = batch.cache.read(place, bucket.blocks)
        rows = query[0, :, bucket.start : bucket.end].transpose(0, 1)
        bias = bucket.bias(keys.shape[2], sliding_window)
        output[bucket.start : bucket.end] = _attend_one(
            rows, keys, values, bias, scaling, softcap, s_aux
        )
    for chunk in batch.chunks:
        keys, values = batch.cache.read(place, chunk.blocks)
        num_keys = chunk.num_context + chunk.end - chunk.start
        keys, values = (
            keys.transpose(0, 1)[:, :, :num_keys],
            values.transpose(0, 1)[:, :, :num_keys],
        )
        tokens = query[:, :, chunk.start : chunk.end]
        causal = chunk.mask(sliding_window)
        attended = _attend(tokens, keys, values, causal, scaling, softcap, s_aux)
        output[chunk.start : chunk.end] = attended[0].transpose(0, 1)
    return output[None], None


def _attend_one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one token of each row, [rows, heads, dim], over [kv_heads, rows, keys, dim].

    `bias`: float32 [rows, 1, keys], -inf where a row may not look. The query heads that read one
    key head make one matrix, so a layer is two batched products: torch's fused attention is several
    times slower for single queries on a CPU, in bfloat16 ten times.
    """
    num_kv_heads, num_rows = keys.shape[:2]
    grouped = query.view(num_rows, num_kv_heads, -1, query.shape[-1]).transpose(0, 1)
    scores = torch.matmul(grouped, keys.transpose(2, 3)).float().mul_(scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores.add_(bias)  # [kv_heads, rows, group, keys]
    sinks = None if sinks is None else sinks.view(num_kv_heads, 1, -1, 1)
    weights = _softmax(scores, sinks).to(values.dtype)
    attended = torch.matmul(weights, values).transpose(0, 1)
    return attended.reshape(num_rows, query.shape[1], values.shape[-1])


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of [rows, heads, tokens, dim] over [rows, kv_heads, keys, dim], in that shape.

    `mask` is True where a query may look; None is plain causal attention.
    """
    if softcap is not None or sinks is not None:
        return _attend_plainly(query, keys, values, mask, scaling, softcap, sinks)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def _attend_plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same with scores capped to `softcap * tanh(scores / softcap)`, as Gemma 2 does, or with
    sinks, [heads], as GPT-OSS has.
    """
    shared = query.shape[1] // keys.shape[1]  # query heads that read one key head
    keys, values = (part.repeat_interleave(shared, dim=1) for part in (keys, values))
    scores = torch.matmul(query * scaling, keys.transpose(2, 3)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = _softmax(scores, None if sinks is None else sinks.view(-1, 1, 1))
    return torch.matmul(weights.to(values.dtype), values)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the last dimension of float32 `scores`; `sinks` are one more score, without a key."""
    if sinks is None:
        return softmax(scores, dim=-1)
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
