"""From the prompts of a comparison to cases, checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from ensemble.errors import ScorerError
from ensemble.scorers import Scorer, check_references
from server.api.compare_schemas import CompareBody
from server.api.fields import Prompt
from server.api.prompts import EncodedPrompt, PromptReader, message_ids, prompt_ids
from server.api.schemas import Message
from server.compare.case import Case
from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError

PATTERN_SCORERS = frozenset({"regex"})
"""Scorers whose references are no texts, so that they have no loss."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The prompts of a comparison as they came: texts and token ids, or conversations."""

    prompts: Sequence[Prompt] | None
    messages: Sequence[Sequence[Message]] | None
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.prompts or self.messages or ())

    def encode(self, index: int, members: Sequence[PromptReader] = ()) -> EncodedPrompt:
        """Token ids of one prompt, and of what members read in its place. Not on the event loop."""
        if self.prompts is not None:
            return prompt_ids([self.prompts[index]], self.tokenizer, members)[0]
        assert self.messages is not None
        return message_ids(self.messages[index], self.tokenizer, members)

    def shown(self, index: int) -> str:
        """One prompt as people read it."""
        if self.prompts is not None:
            prompt = self.prompts[index]
            return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        assert self.messages is not None
        said = self.messages[index]
        if len(said) == 1:
            return said[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in said)


async def make_cases(body: CompareBody, inputs: Inputs) -> list[Case]:
    """Cases of all prompts. InvalidRequestError for a reference that its scorer cannot apply to."""
    return await run_in_threadpool(_cases, body, inputs)  # thousands of prompts take seconds


def _cases(body: CompareBody, inputs: Inputs) -> list[Case]:
    tags = body.tags or [None] * len(inputs)
    references = body.references or [None] * len(inputs)
    scorers = [body.scorer_of(tag) for tag in tags]
    _check(scorers, references)
    cases = []
    for index in range(len(inputs)):
        encoded = inputs.encode(index)
        reference, scorer = references[index], scorers[index]
        has_text = reference is not None and (scorer is None or scorer.name not in PATTERN_SCORERS)
        ids = _text_ids(inputs.tokenizer, reference) if has_text else ()
        cases.append(
            Case(
                index=index,
                shown=inputs.shown(index),
                token_ids=encoded.token_ids,
                reference=reference,
                reference_ids=ids,
                tag=tags[index],
                scorer=scorer,
            )
        )
    return cases


def _text_ids(tokenizer: Tokenizer, text: str | None) -> tuple[int, ...]:
    assert text is not None
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _check(scorers: Sequence[Scorer | None], references: Sequence[str | None]) -> None:
    reasons = []
    for index, (scorer, reference) in enumerate(zip(scorers, references, strict=True)):
        if scorer is not None and reference is not None:
            try:
                check_references(scorer, [reference])
            except ScorerError as error:
                what = f"references[{index}]: the scorer {scorer.name!r} cannot apply"
                reasons += [f"{what}: {reason.partition(': ')[2]}" for reason in error.reasons]
    if reasons:
        more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        raise InvalidRequestError("; ".join(reasons[:8]) + more, param=reasons[0].partition(":")[0])
