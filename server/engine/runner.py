"""Runs the model on a step's rows: the only class that calls it."""

from collections.abc import Mapping, Sequence

import torch

from merging.blend import Blend
from server.engine.batch import Batch, pack
from server.engine.group import Row
from server.engine.kv_cache import KVCache
from server.engine.model import BlendedModel
from server.engine.scales import base_scales
from server.engine.slab import Slab
from server.engine.step_plan import RowWork
from server.engine.variant import Variant


class Runner:
    """Packs rows, activates their blends, and makes one forward for the base and each variant."""

    def __init__(
        self, model: BlendedModel, cache: KVCache, *, max_active_rank: int | None = None
    ) -> None:
        self.cache = cache
        self.windows: Mapping[int, int | None] = {}  # of the last forward, by layer
        self._model = model
        self._layers = cache.places(model.shapes)
        shapes = {name: (m.out_features, m.in_features) for name, m in model.linears.items()}
        column = {name: index for index, name in enumerate(model.linears)}
        self._columns = [[column[name] for name in names] for names in model.siblings]
        self._slab = Slab(
            shapes, model.siblings, model.dtype, model.device, max_rank=max_active_rank
        )

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
            logits |= self._forward(variant, rows)
        return logits

    def _forward(self, variant: Variant | None, work: Sequence[RowWork]) -> dict[Row, torch.Tensor]:
        """The same for rows of one model."""
        model, cache, layers = self._model, self.cache, self._layers
        if variant is not None:
            model, cache, layers = variant.model, variant.cache, variant.cache_layers
            cache.freshen(item.row.block_table for item in work)
        batch = pack(work, cache, layers, model.device)
        self.windows = batch.windows
        wanted = [item.num_logits for item in batch.work]
        if variant is None:
            self._activate(batch, wanted)
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

    def clear(self, blocks: list[int]) -> None:
        """Wipe blocks that are handed to new rows."""
        self.cache.clear(blocks)

    def _activate(self, batch: Batch, wanted: list[int]) -> None:
        """Tell the base's linears which stacks and scales the step needs and which row each of
        their tokens belongs to.
        """
        step = self._model.step
        blends = [item.row.weights for item in batch.work if isinstance(item.row.weights, Blend)]
        step.stacks = self._slab.activate(blends)
        step.scales = base_scales(blends, self._columns, self._model.device)
        step.row_of_token = self._row_of_token([item.num_tokens for item in batch.work])
        step.row_of_logit = self._row_of_token(wanted)

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
