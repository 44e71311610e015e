"""Draws tokens from logits, and reports log-probabilities at temperature 1.

Random numbers are keyed by (seed, choice, token index) with a counter-based generator (Philox;
Salmon et al., SC'11), so a request draws the same numbers whatever else is in the batch, and again
after a preemption. Tokens race: each draws an exponential number, and the largest ratio of
probability to number wins (the Gumbel-max trick). What else is in a batch moves logits by rounding,
and that changes the winner only where the two best ratios are as close as that. Inverting the
cumulative distribution would change it near any of its steps, and in the tail they lie denser than
rounding.
"""

from collections.abc import Sequence

import numpy as np
import torch

from server.engine.group import Group
from server.engine.reader import token_logprobs
from server.engine.request import SamplingParams, TokenLogprobs

LARGEST = 1e30

NUM_CANDIDATES = 256
"""Tokens that top-p looks at first; if they hold too little probability, all are sorted."""


def sample(
    logits: torch.Tensor,
    groups: Sequence[Group],
    eos: frozenset[int],
    drawn_from: torch.Tensor | None = None,
) -> list[TokenLogprobs]:
    """Draw one token for each group. `logits`: float32 [groups, vocab], combined and unmodified.

    Log-probabilities are of `logits`; tokens are drawn from `drawn_from`, if given.
    """
    scores = logits if drawn_from is None else drawn_from
    if any(_changes_scores(group, eos) for group in groups):
        scores = scores.clone()
        for row, group in zip(scores, groups, strict=True):
            _apply_penalties(row, group, eos)
    tokens = scores.argmax(dim=-1)
    drawn = [i for i, group in enumerate(groups) if group.sampling.temperature > 0]
    if drawn:
        params = [groups[i].sampling for i in drawn]
        numbers = torch.stack([_exponentials(groups[i], scores.shape[-1]) for i in drawn])
        tokens[drawn] = _draw(scores[drawn], params, numbers.to(scores.device))
    return _report(logits, tokens.tolist(), groups)


def _changes_scores(group: Group, eos: frozenset[int]) -> bool:
    sampling = group.sampling
    penalised = sampling.presence_penalty or sampling.frequency_penalty
    changed = penalised or sampling.repetition_penalty != 1 or sampling.logit_bias
    return bool(changed or forbidden_tokens(group, eos))


def forbidden_tokens(group: Group, eos: frozenset[int]) -> frozenset[int]:
    """Tokens that would end the group before its `min_tokens`."""
    sampling = group.sampling
    if len(group.output_tokens) >= sampling.min_tokens:
        return frozenset()
    return frozenset(sampling.stop_token_ids) | sampling.ends(eos)


def _apply_penalties(scores: torch.Tensor, group: Group, eos: frozenset[int]) -> None:
    """Repetition (over prompt and output), then presence and frequency (over output), then bias; in
    place, [vocab].
    """
    sampling = group.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(group.rows[0].tokens)), device=scores.device)
        found = scores[seen]
        factor = sampling.repetition_penalty
        scores[seen] = torch.where(found > 0, found / factor, found * factor)
    if group.output_tokens and (sampling.presence_penalty or sampling.frequency_penalty):
        output = torch.tensor(group.output_tokens, device=scores.device)
        seen, counts = torch.unique(output, return_counts=True)
        scores[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for token_id, bias in sampling.logit_bias.items():
        scores[token_id] += bias
    scores.clamp_(-LARGEST, LARGEST)  # penalties may overflow, and inf - inf is NaN
    if forbidden := forbidden_tokens(group, eos):
        scores[sorted(forbidden)] = float("-inf")


def _exponentials(group: Group, vocab_size: int) -> torch.Tensor:
    """Exponential numbers for the group's next token, float32 [vocab]."""
    counter = [0, len(group.output_tokens), group.request.choice, 0]  # the first one counts up
    raw = np.random.Philox(key=group.seed, counter=counter).random_raw((vocab_size + 1) // 2)
    words = torch.from_numpy(raw.view(np.uint32)[:vocab_size].astype(np.float32))
    # Fine near 0, where the winners are: a token of probability p wins with a number of about p.
    return words.add_(0.5).mul_(-(2**-32)).log1p_().neg_()


def _draw(
    scores: torch.Tensor, params: Sequence[SamplingParams], exponentials: torch.Tensor
) -> torch.Tensor:
    """Truncate by top-k, top-p and min-p, in this order, and draw. `scores`, `exponentials`: [rows,
    vocab] -> token ids [rows].
    """
    temperature = _column(scores, [p.temperature for p in params])
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    for row, param in enumerate(params):
        if 0 < param.top_k < scaled.shape[-1]:
            _keep_top_k(scaled[row], param.top_k)
    probabilities = scaled.softmax(dim=-1)
    for row, param in enumerate(params):
        if param.top_p < 1:
            _keep_top_p(probabilities[row], param.top_p)
    min_p = _column(scores, [p.min_p for p in params])
    probabilities[probabilities < min_p * probabilities.amax(dim=-1, keepdim=True)] = 0
    return (probabilities / exponentials).argmax(dim=-1)


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _keep_top_k(scores: torch.Tensor, top_k: int) -> None:
    """Hide all but the `top_k` best, in place, [vocab]."""
    best, indices = scores.topk(top_k)
    scores.fill_(float("-inf"))
    scores[indices] = best


def _keep_top_p(probabilities: torch.Tensor, top_p: float) -> None:
    """Zero all but the smallest set of best tokens that holds `top_p` of the probability, in place,
    [vocab].
    """
    count = min(NUM_CANDIDATES, len(probabilities))
    best, indices = probabilities.topk(count)
    if best.sum() < top_p:
        best, indices = probabilities.sort(descending=True)
    kept = best.cumsum(dim=-1) - best < top_p  # the token that reaches top_p stays
    kept[0] = True
    probabilities.zero_()
    probabilities[indices[kept]] = best[kept]


def _report(
    logits: torch.Tensor, tokens: list[int], groups: Sequence[Group]
) -> list[TokenLogprobs]:
    reports = [TokenLogprobs(token) for token in tokens]
    wanted = [i for i, group in enumerate(groups) if group.sampling.logprobs is not None]
    if wanted:
        counts = [groups[i].sampling.logprobs or 0 for i in wanted]
        chosen = [tokens[i] for i in wanted]
        for i, report in zip(wanted, token_logprobs(logits[wanted], chosen, counts), strict=True):
            reports[i] = report
    return reports
