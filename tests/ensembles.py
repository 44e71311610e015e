"""What an ensemble says, computed by itself: models one after the other, rules written out again in
float64, and no cache.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

Logits = Callable[[Sequence[int]], np.ndarray]
"""A model: token ids -> the logits of the next token, float64 [vocab]."""


def model_logits(model: PreTrainedModel) -> Logits:
    """A transformers model as it is; of a PEFT model the unmerged forward."""

    def logits(token_ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0, -1]
        return output.double().numpy()

    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 [vocab]."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def combine(
    rule: str, logits: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> np.ndarray:
    """Log-probabilities of the combined distribution, float64 [vocab]. `logits` has the base's
    where the rule needs them.
    """
    if rule == "task_arithmetic":
        base = logits["base"]
        total = base + sum(w * (logits[name] - base) for name, w in weights.items())
        return np.log(softmax(total))
    whole = sum(weights.values())
    if rule == "log_pool":
        return np.log(softmax(sum(w / whole * logits[name] for name, w in weights.items())))
    assert rule == "linear_pool"
    return np.log(sum(w / whole * softmax(logits[name]) for name, w in weights.items()))


def prompt_log_likelihood(model: Logits, prompt: Sequence[int]) -> float:
    """The mean log-probability of the tokens of a prompt but the first, in nats."""
    found = [np.log(softmax(model(prompt[:end])))[prompt[end]] for end in range(1, len(prompt))]
    return float(np.mean(found))


def greedy(
    rule: str,
    models: Mapping[str, Logits],
    weights: Mapping[str, float],
    prompt: Sequence[int],
    num_tokens: int,
    prompts: Mapping[str, Sequence[int]] | None = None,
) -> tuple[list[int], list[float], float]:
    """Greedy tokens, their log-probabilities, and the smallest lead of a token over the next.

    `prompts` are those of members that do not read `prompt`.
    """
    own = prompts or {}
    tokens: list[int] = []
    log_probs: list[float] = []
    lead = np.inf
    for _ in range(num_tokens):
        logits = {n: model([*own.get(n, prompt), *tokens]) for n, model in models.items()}
        combined = combine(rule, logits, weights)
        second, first = np.sort(combined)[-2:]
        lead = min(lead, first - second)
        tokens.append(int(combined.argmax()))
        log_probs.append(float(combined.max()))
    return tokens, log_probs, float(lead)
