"""Reads a text with several models at once, for their losses and their distances from the first."""

import math
from collections.abc import Mapping, Sequence

import torch

from server.compare.reading import MAX_NATS
from server.compare.text_reader import Listener


class TrialReader:
    """Adds up, for each voice, its loss on the text and the divergence of the first from it.

    A voice whose logits are not finite once has infinite sums; the others go on.
    """

    def __init__(self, text: Sequence[int], listeners: Mapping[int, Listener]) -> None:
        self._text = torch.tensor(text)
        self._listeners = listeners
        self._losses = dict.fromkeys(listeners, 0.0)
        self._divergences = dict.fromkeys(listeners, 0.0)

    @torch.inference_mode()
    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Take the logits that predict `text[begin:]`, float32 [rows, positions, vocab]."""
        targets = self._text[begin : begin + logits.shape[1], None].to(logits.device)
        first = likely = None
        for voice, listener in self._listeners.items():
            own = listener.logits(logits).log_softmax(dim=-1)
            if not bool(own.amax().isfinite()):
                self._losses[voice] = self._divergences[voice] = math.inf
            self._losses[voice] -= float(own.gather(1, targets).clamp(min=-MAX_NATS).sum())
            if first is None or likely is None:
                first, likely = own, own.exp()
            else:
                terms = likely * (first - own).clamp(max=MAX_NATS)
                self._divergences[voice] += float(terms.nan_to_num(nan=0.0).sum())  # 0 log 0

    @property
    def losses(self) -> list[float]:
        """Nats a token, by voice."""
        return [_mean(total, len(self._text)) for total in self._losses.values()]

    @property
    def divergences(self) -> list[float]:
        """Kullback-Leibler divergence of the first voice from each, nats a token."""
        return [_mean(total, len(self._text)) for total in self._divergences.values()]


def _mean(total: float, count: int) -> float:
    return math.inf if math.isnan(total) else total / count
