"""What is compared on: prompts, with the answers that were hoped for and what they are about."""

from dataclasses import dataclass

from ensemble.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt and what belongs to it.

    `shown` is the prompt as people read it, `token_ids` as models do. `reference` is a good answer,
    of tokens `reference_ids`; a `scorer` says with it whether an answer is right. `tag` names the
    task, by which results are grouped.
    """

    index: int
    shown: str
    token_ids: tuple[int, ...]
    reference: str | None = None
    reference_ids: tuple[int, ...] = ()
    tag: str | None = None
    scorer: Scorer | None = None
