"""The factors on the base's own weights that the blends of a step ask for."""

from collections.abc import Sequence

import torch

from merging.blend import Blend


def base_scales(
    blends: Sequence[Blend], columns: Sequence[Sequence[int]], device: torch.device
) -> dict[int, torch.Tensor]:
    """Scales by the number of the siblings, float32 [rows, linears], for rows that see `blends`,
    one each; only where some row's is not 1.

    `columns`: for the linears of all siblings, which of a blend's modules they are.
    """
    if all(blend.base_scales is None for blend in blends):
        return {}
    ones = torch.ones(sum(map(len, columns)))
    by_module = torch.stack([ones if b.base_scales is None else b.base_scales for b in blends])
    ordered = by_module[:, [column for part in columns for column in part]]
    changed = torch.split((ordered != 1).any(dim=0), [len(part) for part in columns])
    scales = torch.split(ordered.to(device), [len(part) for part in columns], dim=1)
    return {number: scales[number] for number, any_row in enumerate(changed) if any_row.any()}
