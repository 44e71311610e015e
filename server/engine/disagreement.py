"""How far the rows of an ensemble are apart where it samples, measured now and then."""

from dataclasses import dataclass

import torch

from ensemble.divergence import member_divergence

EVERY_TOKENS = 16
"""Tokens of a group between two measurements: each takes about as long as the rule."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """At one token: the generalised Jensen-Shannon divergence of the rows, all weighted alike, in
    nats, and the share of them whose most likely token is that of the combined distribution.
    """

    divergence: float
    agreement: float

    @classmethod
    def of(cls, rows: torch.Tensor, combined: torch.Tensor) -> "Disagreement":
        """Measure `rows`, logits float32 [rows, vocab], and what was made of them, [vocab]."""
        log_probs = rows.log_softmax(dim=-1)
        divergence = member_divergence(log_probs[:, None], [1.0] * len(rows))
        same_top = rows.argmax(dim=-1) == combined.argmax(dim=-1)
        return cls(divergence.item(), same_top.float().mean().item())
