"""The engine's limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Bounds of one engine. Lengths and counts are in tokens, rows or groups; blocks hold
    `block_size` tokens of KV.

    `max_step_tokens` bounds a step's work: decode rows come first, prefill chunks fill what is
    left, so a long prompt delays running streams by at most one such step. `max_prompt_logits`
    bounds the positions of texts whose logits are all needed, over all rows: they pass through the
    head, at `vocab_size` floats each. `max_background_tokens` bounds what background groups add to
    a step of live ones; rows that live groups held in the last `live_memory` steps are kept free of
    them. `max_active_rank` bounds the summed LoRA
    rank that every row of a step pays for. `block_bytes` is the memory that a block takes.
    """

    max_model_len: int
    num_blocks: int
    block_size: int = 16
    max_rows: int = 64
    max_queued: int = 256
    max_step_tokens: int = 256
    max_prompt_logits: int = 128
    max_background_tokens: int = 16
    live_memory: int = 16
    max_active_rank: int = 2048
    block_bytes: int = 0

    def __post_init__(self) -> None:
        assert self.max_model_len <= self.num_blocks * self.block_size, (
            "one row must fit the KV cache"
        )
        assert self.max_step_tokens >= 1
        assert self.max_rows >= 1
