"""RAM's split of deltas: elements that one source changed, and those that several did."""

from collections.abc import Sequence

import torch


def active_masks(
    deltas: Sequence[torch.Tensor], epsilon: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Where each delta is active (bool), and how many are (float32); all in the deltas' shape."""
    masks = [delta.abs() > epsilon for delta in deltas]
    count = torch.zeros_like(deltas[0])
    for mask in masks:
        count += mask
    return masks, count


def reinforced_sum(
    deltas: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    count: torch.Tensor,
    unique_factors: Sequence[float],
) -> torch.Tensor:
    """Elements that one source changed times its factor, plus the mean of those that several did
    (RAM, 2601.13572).
    """
    merged = torch.zeros_like(count)
    share = 1 / count.clamp(min=1)
    for delta, mask, factor in zip(deltas, masks, unique_factors, strict=True):
        merged += delta * mask * torch.where(count == 1, factor, share)
    return merged
