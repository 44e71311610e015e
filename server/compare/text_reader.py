"""Reads one text with several models at once: the engine's `Reader` of a comparison.

It is called on the engine's thread with a chunk of positions of all rows, and keeps of 49,152
numbers a position a dozen: nothing here grows with the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.divergence import Divergences, divergences, token_log_probs, top_tokens
from ensemble.errors import EnsembleError
from server.compare.reading import Pair, PairReading, Reading, Tops, bounded
from server.engine.request import Rule

TOP_K = 5
"""Tokens kept of each position for people to look at."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A voice among the rows that are read: which of them it combines, and how."""

    rows: tuple[int, ...]
    rule: Rule | None = None

    def logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Its own logits, of all rows': [rows, positions, vocab] -> [positions, vocab]."""
        if self.rule is None:
            return logits[self.rows[0]]
        return self.rule(logits[list(self.rows)])


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is kept of one chunk of positions."""

    log_probs: dict[int, torch.Tensor]
    pairs: dict[Pair, Divergences]
    tops: dict[int, tuple[torch.Tensor, torch.Tensor]]


class TextReader:
    """Collects a `Reading` of one text. `pairs` are compared, `shown` voices have their tops kept.

    A voice whose logits are not finite is left out from there on, with every pair that it is of;
    the others go on.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        listeners: Mapping[int, Listener],
        pairs: Sequence[Pair],
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._token_ids = torch.tensor(token_ids)
        self._listeners = dict(listeners)
        self._pairs = list(pairs)
        self._shown = shown
        self._chunks: list[_Chunk] = []
        self._num_read = 0
        self._errors: dict[int, str] = {}

    @torch.inference_mode()
    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Take the logits that predict `text[begin:]`, float32 [rows, positions, vocab]."""
        assert begin == self._num_read, (begin, self._num_read)
        num_positions = logits.shape[1]
        targets = self._token_ids[begin : begin + num_positions].to(logits.device)
        log_probs = self._log_probs(logits)
        shown = {voice: log_probs[voice] for voice in self._shown & log_probs.keys()}
        self._chunks.append(
            _Chunk(
                {voice: token_log_probs(own, targets) for voice, own in log_probs.items()},
                {
                    (p, q): divergences(log_probs[p], log_probs[q])
                    for p, q in self._pairs
                    if p in log_probs and q in log_probs
                },
                {voice: _tops(own) for voice, own in shown.items()},
            )
        )
        self._num_read += num_positions

    def reading(self) -> Reading:
        """What was read. Call it when the engine has read the whole text."""
        assert self._num_read == len(self._token_ids), (self._num_read, len(self._token_ids))
        failed = self._errors.keys()
        voices = [voice for voice in self._listeners if voice not in failed]
        pairs = [pair for pair in self._pairs if not failed & set(pair)]
        return Reading(
            token_ids=tuple(self._token_ids.tolist()),
            log_probs={
                voice: bounded(_numbers([chunk.log_probs[voice] for chunk in self._chunks]))
                for voice in voices
            },
            pairs={pair: self._pair(pair) for pair in pairs},
            tops={voice: self._tops(voice) for voice in voices if voice in self._shown},
            errors=dict(self._errors),
        )

    def _log_probs(self, logits: torch.Tensor) -> dict[int, torch.Tensor]:
        """Log-probabilities [positions, vocab] of every voice that is still heard."""
        found = {}
        for voice, listener in self._listeners.items():
            if voice in self._errors:
                continue
            try:
                own = listener.logits(logits)
                if not bool(own.amax(dim=-1).isfinite().all()):
                    raise EnsembleError("the logits are not finite: weights overflow or hold NaN")
            except EnsembleError as error:
                self._errors[voice] = str(error)
            else:
                found[voice] = own.log_softmax(dim=-1)
        return found

    def _pair(self, pair: Pair) -> PairReading:
        found = Divergences.cat(chunk.pairs[pair] for chunk in self._chunks)
        return PairReading(
            forward_kl=bounded(_numbers([found.forward_kl])),
            reverse_kl=bounded(_numbers([found.reverse_kl])),
            js=_numbers([found.js]),
            total_variation=_numbers([found.total_variation]),
            same_top=found.same_top.cpu().numpy(),
        )

    def _tops(self, voice: int) -> Tops:
        token_ids, log_probs = zip(*(chunk.tops[voice] for chunk in self._chunks), strict=True)
        return Tops(torch.cat(token_ids).cpu().numpy(), np.exp(_numbers(list(log_probs))))


def _tops(log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best = top_tokens(log_probs, TOP_K)
    return best, log_probs.gather(1, best)


def _numbers(parts: list[torch.Tensor]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return torch.cat(parts).double().cpu().numpy()
