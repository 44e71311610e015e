"""The log-probabilities of a given text."""

from collections.abc import Sequence

import torch

from server.engine.request import Rule, TokenLogprobs


class LogprobsReader:
    """Reads a text for the log-probabilities of its tokens: of several rows, those of what the rule
    makes of them.

    `is_greedy` says whether every token so far was the most likely one, so that greedy decoding
    would have written it.
    """

    def __init__(self, text: Sequence[int], num_top: int, rule: Rule | None) -> None:
        """`num_top`: alternatives to report for each token."""
        self.tokens: list[TokenLogprobs] = []
        self.is_greedy = True
        self._text, self._num_top, self._rule = text, num_top, rule

    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Float32 [rows, positions, vocab], of the tokens from `begin` on."""
        assert begin == len(self.tokens), (begin, len(self.tokens))
        combined = logits[0] if self._rule is None else self._rule(logits)
        targets = self._text[begin : begin + len(combined)]
        self.tokens += token_logprobs(combined, targets, [self._num_top] * len(targets))
        self.is_greedy = self.is_greedy and combined.argmax(dim=-1).tolist() == list(targets)


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Log-probabilities of given tokens and of the best ones. `logits`: float32 [tokens, vocab]."""
    normalisers = logits.logsumexp(dim=-1, keepdim=True)
    targets = torch.tensor(token_ids, device=logits.device)[:, None]
    chosen = (logits.gather(1, targets) - normalisers)[:, 0].tolist()
    values, indices = logits.topk(min(max(num_top), logits.shape[-1]), dim=-1)
    best = zip(num_top, indices.tolist(), (values - normalisers).tolist(), strict=True)
    return [
        TokenLogprobs(token_id, logprob, _top(token_id, logprob, ids[:count], logprobs[:count]))
        for token_id, logprob, (count, ids, logprobs) in zip(token_ids, chosen, best, strict=True)
    ]


def _top(
    token_id: int, logprob: float, ids: list[int], logprobs: list[float]
) -> tuple[tuple[int, float], ...]:
    """The best tokens; among equals the chosen one comes first, so a greedy token is always the
    first.
    """
    if ids and logprob == logprobs[0] and ids[0] != token_id:
        ids = [token_id, *[other for other in ids if other != token_id]][: len(ids)]
    return tuple(zip(ids, logprobs, strict=True))
