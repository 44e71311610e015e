"""Weights of sources from the prompt itself: how well each of them predicts it.

PackLLM's `sim` weights (arXiv:2404.11531, section 3): the softmax over models of their mean
log-likelihood of the prompt, which is minus the logarithm of its perplexity. The prefill of an
ensemble's rows yields them on the way.
"""

import math
from collections.abc import Mapping, Sequence

from ensemble.errors import StatisticsError


def mean_log_likelihood(log_probs: Sequence[float]) -> float:
    """A source's score: the mean log-probability of the prompt's tokens, in nats per token.

    `log_probs` are those of every token but the first, which nothing predicts. A prompt of one
    token says nothing: 0, the same for every source.
    """
    return math.fsum(log_probs) / len(log_probs) if log_probs else 0.0


def prompt_weights(scores: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """Softmax of the sources' scores, `w_i ∝ exp(score_i / temperature)`, summing to 1.

    `scores` are mean log-likelihoods. At a low temperature the best source gets nearly all, at a
    high one all get the same. A source to which the prompt is impossible (-inf) gets 0.

    Raises StatisticsError for a temperature that is not above 0, for a score that is NaN or +inf,
    and if the prompt is impossible to every source.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise StatisticsError(f"the temperature must be above 0, got {temperature:g}")
    best = scores[best_source(scores)]
    parts = {name: math.exp((score - best) / temperature) for name, score in scores.items()}
    total = math.fsum(parts.values())
    return {name: part / total for name, part in parts.items()}


def best_source(scores: Mapping[str, float]) -> str:
    """The source with the largest score; among equals the first by name. Routing to it is the hard
    form of `prompt_weights`, its limit at temperature 0. Raises StatisticsError as it does.
    """
    if not scores:
        raise StatisticsError("there are no sources to weigh")
    for name, score in scores.items():
        if math.isnan(score) or score == math.inf:
            raise StatisticsError(f"the log-likelihood of the prompt under {name} is {score}")
    best = min(scores, key=lambda name: (-scores[name], name))
    if scores[best] == -math.inf:
        raise StatisticsError("the prompt is impossible to every source")
    return best
