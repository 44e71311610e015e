"""Reads a text with several models at once, for their losses and their distances from the base."""

import math
from collections.abc import Mapping, Sequence

import torch

from server.compare.reading import MAX_NATS
from server.compare.text_reader import Listener


class BaseReader:
    """Keeps the base's log-probabilities on the text, float32 [positions, vocab]."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = torch.tensor(text)
        self._parts: list[torch.Tensor] = []

    @torch.inference_mode()
    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Take the logits that predict `text[begin:]`, float32 [1, positions, vocab]."""
        self._parts.append(logits[0].log_softmax(dim=-1))

    @property
    def log_probs(self) -> torch.Tensor:
        """All of them, once the text was read."""
        return torch.cat(self._parts)

    @property
    def loss(self) -> float:
        """Nats a token; infinite if it is no number."""
        own = self.log_probs
        loss = -float(own.gather(1, self._text[:, None].to(own.device)).mean())
        return loss if math.isfinite(loss) else math.inf


class TrialReader:
    """Adds up, for each voice, its loss on the text and the base's divergence from it.

    A voice whose logits are not finite once has infinite sums; the others go on.
    """

    def __init__(
        self, text: Sequence[int], base: torch.Tensor, listeners: Mapping[int, Listener]
    ) -> None:
        """`base`: its log-probabilities on the text, float32 [positions, vocab]."""
        self._text, self._base = torch.tensor(text), base
        self._listeners = listeners
        self._losses = dict.fromkeys(listeners, 0.0)
        self._divergences = dict.fromkeys(listeners, 0.0)

    @torch.inference_mode()
    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Take the logits that predict `text[begin:]`, float32 [rows, positions, vocab]."""
        end = begin + logits.shape[1]
        targets, base = self._text[begin:end, None].to(logits.device), self._base[begin:end]
        for voice, listener in self._listeners.items():
            own = listener.logits(logits).log_softmax(dim=-1)
            if not bool(own.amax().isfinite()):
                self._losses[voice] = self._divergences[voice] = math.inf
            self._losses[voice] -= float(own.gather(1, targets).clamp(min=-MAX_NATS).sum())
            terms = base.exp() * (base - own).clamp(max=MAX_NATS)
            self._divergences[voice] += float(terms.nan_to_num(nan=0.0).sum())  # 0 log 0

    @property
    def losses(self) -> list[float]:
        """Nats a token, by voice."""
        return [_mean(total, len(self._text)) for total in self._losses.values()]

    @property
    def divergences(self) -> list[float]:
        """Kullback-Leibler divergence of the base from each voice, nats a token."""
        return [_mean(total, len(self._text)) for total in self._divergences.values()]


def _mean(total: float, count: int) -> float:
    return math.inf if math.isnan(total) else total / count
