"""The one attention function that mergeserve registers with transformers.

The registry is process-wide, the function keeps no state: the step's `Batch`, with the KV cache in
it, arrives through the forward's keyword arguments.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface

from server.engine.batch import Batch
from server.engine.errors import UnsupportedModelError

IMPLEMENTATION = "mergeserve"


def register() -> None:
    """Make the function known to transformers; registering twice is harmless."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    mergeserve_batch: Batch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values, then attend, row by row of the packed step.

    `query`: [1, heads, tokens, dim]; `key`, `value`: [1, kv_heads, tokens, dim]. Returns [1,
    tokens, heads, dim]. Sliding windows and soft caps are ours to apply.
    """
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModelError("attention sinks are not supported")
    batch, layer = mergeserve_batch, int(module.layer_idx)  # type: ignore[arg-type]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    batch.windows[layer] = sliding_window
    place = batch.layers[layer]
    batch.cache.write(place, batch.slots, key[0], value[0])
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for bucket in batch.buckets:
        keys, values = batch.cache.read(place, bucket.blocks)
        rows = query[0, :, bucket.start : bucket.end].transpose(0, 1)
        bias = bucket.bias(keys.shape[2], sliding_window)
        output[bucket.start : bucket.end] = _attend_one(rows, keys, values, bias, scaling, softcap)
    for chunk in batch.chunks:
        keys, values = batch.cache.read(place, chunk.blocks)
        num_keys = chunk.num_context + chunk.end - chunk.start
        keys, values = (
            keys.transpose(0, 1)[:, :, :num_keys],
            values.transpose(0, 1)[:, :, :num_keys],
        )
        tokens = query[:, :, chunk.start : chunk.end]
        causal = chunk.mask(sliding_window)
        attended = _attend(tokens, keys, values, causal, scaling, softcap)
        output[chunk.start : chunk.end] = attended[0].transpose(0, 1)
    return output[None], None


def _attend_one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    softcap: float | None,
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
    weights = softmax(scores.add_(bias), dim=-1).to(values.dtype)  # [kv_heads, rows, group, keys]
    attended = torch.matmul(weights, values).transpose(0, 1)
    return attended.reshape(num_rows, query.shape[1], values.shape[-1])


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of [rows, heads, tokens, dim] over [rows, kv_heads, keys, dim], in that shape.

    `mask` is True where a query may look; None is plain causal attention.
    """
    if softcap is not None:
        return _attend_capped(query, keys, values, mask, scaling, softcap)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def _attend_capped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """The same with scores capped to `softcap * tanh(scores / softcap)`, as Gemma 2 does."""
    shared = query.shape[1] // keys.shape[1]  # query heads that read one key head
    keys, values = (part.repeat_interleave(shared, dim=1) for part in (keys, values))
    scores = torch.matmul(query * scaling, keys.transpose(2, 3)).float()
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    return torch.matmul(weights.to(values.dtype), values)
