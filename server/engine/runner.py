"""Runs the model on a step's rows: the only class that calls it."""

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch

from merging.blend import Blend
from server.engine.batch import pack
from server.engine.group import Row
from server.engine.kv_cache import KVCache
from server.engine.model import BlendedModel
from server.engine.row_cache import AlikeRows, RowCache, alike_rows
from server.engine.scales import base_scales
from server.engine.slab import Slab
from server.engine.step_plan import RowWork
from server.engine.variant import Variant


class Runner:
    """Activates the rows' blends, and makes one forward for the base and each variant; where a
    family's own attention runs, one for each length of its rows.
    """

    def __init__(
        self, model: BlendedModel, cache: KVCache, *, max_active_rank: int | None = None
    ) -> None:
        self.cache = cache
        self.layers: Collection[int] = ()  # of the model, that the last forward wrote to the cache
        self._model = model
        self._layers = cache.places(model.shapes)
        self._accepts = frozenset(inspect.signature(model.model.forward).parameters)
        shapes = {name: (m.out_features, m.in_features) for name, m in model.linears.items()}
        column = {name: index for index, name in enumerate(model.linears)}
        self._columns = [[column[name] for name in names] for names in model.siblings]
        self._slab = Slab(
            shapes, model.siblings, model.dtype, model.device, max_rank=max_active_rank
        )

    @property
    def is_packed(self) -> bool:
        """Whether all rows pass through one forward; else those of one length do."""
        return self._model.is_packed

    @property
    def active_rank(self) -> int:
        """Summed rank that the slab holds, for which every row on the base pays in a blended
        step.
        """
        return self._slab.rank

    @torch.inference_mode()
    def forward(self, work: Sequence[RowWork]) -> dict[Row, torch.Tensor]:
        """Compute every row's planned tokens. Returns the logits that are needed, float32
        [positions, vocab], of the rows that have such: `RowWork.num_logits` each.
        """
        logits: dict[Row, torch.Tensor] = {}
        for variant, rows in partition(work):
            model, cache, layers = self._model, self.cache, self._layers
            if variant is not None:
                model, cache, layers = variant.model, variant.cache, variant.cache_layers
                cache.freshen(item.row.block_table for item in rows)
            run = self._forward_packed if model.is_packed else self._forward_alike
            logits |= run(model, cache, layers, rows)
        return logits

    def _forward_packed(
        self, model: BlendedModel, cache: KVCache, layers: Sequence[int], work: Sequence[RowWork]
    ) -> dict[Row, torch.Tensor]:
        """The same for rows of one model whose attention is ours."""
        batch = pack(work, cache, layers, model.device)
        self.layers = batch.written
        wanted = [item.num_logits for item in batch.work]
        self._activate(model, batch.work)
        model.step.row_of_token = self._row_of_token([item.num_tokens for item in batch.work])
        model.step.row_of_logit = self._row_of_token(wanted)
        indices = [
            position
            for item, start, count in zip(batch.work, batch.starts, wanted, strict=True)
            for position in range(start + item.num_tokens - count, start + item.num_tokens)
        ]
        model.step.batch = batch
        try:
            logits = model.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=torch.tensor(indices, dtype=torch.long, device=model.device),
            ).logits[0]
        finally:
            model.step.batch = None  # it knows rows, and they the variant that they see
        parts = logits.float().split(wanted)
        return {
            item.row: part for item, part in zip(batch.work, parts, strict=True) if len(part) > 0
        }

    def _forward_alike(
        self, model: BlendedModel, cache: KVCache, layers: Sequence[int], work: Sequence[RowWork]
    ) -> dict[Row, torch.Tensor]:
        """The same for rows of one model whose attention is the family's own."""
        self._activate(model, work)
        logits: dict[Row, torch.Tensor] = {}
        for rows in alike_rows(work, cache.block_size, model.device):
            row_cache = RowCache(rows, cache, layers)
            parts = self._call(model, rows, row_cache)
            self.layers = row_cache.written
            if rows.num_logits > 0:
                logits |= {item.row: part for item, part in zip(rows.work, parts, strict=True)}
        return logits

    def _call(self, model: BlendedModel, rows: AlikeRows, cache: RowCache) -> torch.Tensor:
        """Logits of alike rows, float32 [rows, num_logits, vocab]."""
        step, count = model.step, rows.num_tokens
        keep = torch.arange(count - rows.num_logits, count, device=model.device)
        options: dict[str, Any] = {"position_ids": rows.positions, "logits_to_keep": keep}
        options = {name: value for name, value in options.items() if name in self._accepts}
        step.row_of_token = step.row_of_logit = rows.index  # however many tokens a linear sees
        logits: torch.Tensor = model.model(
            input_ids=rows.token_ids, past_key_values=cache, use_cache=True, **options
        ).logits
        return logits[:, logits.shape[1] - rows.num_logits :].float()

    def clear(self, blocks: list[int]) -> None:
        """Wipe blocks that are handed to new rows."""
        self.cache.clear(blocks)

    def _activate(self, model: BlendedModel, work: Sequence[RowWork]) -> None:
        """Tell the base's linears which stacks and scales the step needs."""
        if model is not self._model:
            return  # a variant sees no blends
        blends = [item.row.weights for item in work if isinstance(item.row.weights, Blend)]
        model.step.stacks = self._slab.activate(blends)
        model.step.scales = base_scales(blends, self._columns, model.device)

    def _row_of_token(self, counts: list[int]) -> torch.Tensor | None:
        if all(count == 1 for count in counts):
            return None
        rows = torch.arange(len(counts))
        return rows.repeat_interleave(torch.tensor(counts)).to(self._model.device)


def partition(work: Sequence[RowWork]) -> list[tuple[Variant | None, list[RowWork]]]:
    """A step's work by the model that computes it: None is the base with its blends."""
    parts: dict[Variant | None, list[RowWork]] = {}
    for item in work:
        weights = item.row.weights
        parts.setdefault(None if isinstance(weights, Blend) else weights, []).append(item)
    return list(parts.items())
