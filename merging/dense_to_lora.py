"""A dense delta as the closest LoRA of a rank, and the share of the delta that is kept."""

from dataclasses import dataclass

import torch

from merging.adapter import LowRank
from merging.adapter_export import ExportedAdapter
from merging.base import Base
from merging.checkpoint import Progress
from merging.models import Models
from merging.overlay_weights import OverlayWeights


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """`share`: of the squared norm of the whole delta, what the adapter keeps. `lost`: the tensors
    that are no weights of linear layers, which a LoRA cannot change.
    """

    adapter: ExportedAdapter
    share: float
    lost: tuple[str, ...]


def convert_to_lora(
    overlay: OverlayWeights, base: Base, rank: int, progress: Progress = lambda done, total: None
) -> Converted:
    """The closest low-rank delta on each linear layer (Eckart and Young), of float32 factors.

    Takes an SVD for each layer. What a tied head has of its own counts as a change of the head.
    """
    tied = Models(base, overlay.resident, {}).tied
    factors: dict[str, LowRank] = {}
    kept = whole = 0.0
    lost = []
    names = sorted(overlay.own.shapes)
    for done, name in enumerate(names):
        progress(done, len(names))
        module = name.removesuffix(".weight")
        original = overlay.resident.tensor(tied.get(name, name)).float()
        delta = overlay.own.tensor(name) - original
        whole += float(delta.double().square().sum())
        if name == module or module not in base.linears:
            lost.append(name)
            continue
        matrix = delta.T if base.linears[module].transposed else delta
        factors[module], energy = _cut(matrix, rank)
        kept += energy
    share = kept / whole if whole else 1.0
    return Converted(ExportedAdapter(factors, {}, (1 - min(share, 1.0)) ** 0.5), share, tuple(lost))


def _cut(delta: torch.Tensor, rank: int) -> tuple[LowRank, float]:
    """The factors, and their squared norm."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    root = s.sqrt()
    return LowRank(root[:, None] * vh, u * root, 1.0), float(s.double().square().sum())
