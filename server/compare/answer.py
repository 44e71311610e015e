"""What a candidate answered to a prompt, and what that took."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.engine.request import FinishReason


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text; with an `error` there is none.

    `token_ids` include the token that ended the text. Times are in seconds from submission;
    `num_rows` counts the forwards that each token took. `weights` are those that the prompt chose.
    `is_failure`: the model itself failed, as with logits that are not finite.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    seconds: float = 0.0
    seconds_to_first: float = 0.0
    num_rows: int = 0
    kv_bytes: int = 0
    weights: Mapping[str, float] | None = None
    error: str | None = None
    is_failure: bool = False


def first_divergence(answer: Answer, reference: Answer) -> int | None:
    """Index of the first token in which two answers differ; None if they are the same."""
    pairs = zip(answer.token_ids, reference.token_ids, strict=False)
    for index, (first, second) in enumerate(pairs):
        if first != second:
            return index
    num_tokens = {len(answer.token_ids), len(reference.token_ids)}
    return min(num_tokens) if len(num_tokens) > 1 else None
