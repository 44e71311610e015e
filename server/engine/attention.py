"""The one attention function that mergeserve registers with transformers.

The registry is process-wide, the function keeps no state: the step's `Batch`, with the KV cache in
it, arrives through the forward's keyword arguments.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface

from server.engine.batch import Batch, DecodeBucket, PrefillChunk
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
    batch.cache.write(layer, batch.slots, key[0], value[0])
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for bucket in batch.buckets:
        keys, values = batch.cache.read(layer, bucket.blocks)
        rows = query[0, :, bucket.start : bucket.end]
        output[bucket.start : bucket.end] = _decode(
            rows, keys, values, bucket, scaling, sliding_window, softcap
        )
    for chunk in batch.chunks:
        keys, values = batch.cache.read(layer, chunk.blocks)
        num_keys = chunk.num_context + chunk.end - chunk.start
        tokens = query[0, :, chunk.start : chunk.end]
        output[chunk.start : chunk.end] = _prefill(
            tokens, keys[:, 0, :num_keys], values[:, 0, :num_keys], chunk, scaling,
            sliding_window, softcap,
        )  # fmt: skip
    return output[None], None


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bucket: DecodeBucket,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One new token per row. `query`: [heads, rows, dim]; `keys`: [kv_heads, rows, keys, dim] ->
    [rows, heads, dim].
    """
    heads, rows, dim = query.shape
    kv_heads, _, num_keys, value_dim = values.shape
    shared = heads // kv_heads  # query heads that read one key head
    grouped = (query * scaling).view(kv_heads, shared, rows, dim).transpose(1, 2)
    scores = torch.bmm(
        grouped.reshape(kv_heads * rows, shared, dim), keys.flatten(0, 1).transpose(1, 2)
    ).float()
    scores = _cap(scores, softcap).view(kv_heads, rows, shared, num_keys)
    scores.masked_fill_(bucket.mask(num_keys, sliding_window), float("-inf"))
    weights = softmax(scores, dim=-1).to(values.dtype).view(kv_heads * rows, shared, num_keys)
    attended = torch.bmm(weights, values.flatten(0, 1)).view(kv_heads, rows, shared, value_dim)
    return attended.transpose(0, 1).reshape(rows, heads, value_dim)


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk: PrefillChunk,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Several tokens of one row. `query`: [heads, tokens, dim]; `keys`: [kv_heads, keys, dim] ->
    [tokens, heads, dim].
    """
    mask = chunk.mask(sliding_window)
    if softcap is None:
        attended = scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None,
            scale=scaling, enable_gqa=query.shape[0] != keys.shape[0],
        )[0]  # fmt: skip
        return attended.transpose(0, 1)
    shared = query.shape[0] // keys.shape[0]
    keys, values = (part.repeat_interleave(shared, dim=0) for part in (keys, values))
    scores = _cap(torch.matmul(query * scaling, keys.transpose(1, 2)).float(), softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = softmax(scores.masked_fill(~mask, float("-inf")), dim=-1).to(values.dtype)
    return torch.matmul(weights, values).transpose(0, 1)


def _cap(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
