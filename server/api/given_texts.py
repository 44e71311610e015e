"""Given texts: from what the caller sent to the tokens that are scored, and those before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.engine.tokenizer import Tokenizer
from server.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class GivenText:
    """A text whose last `num_read` tokens are scored. `name` is where it stands in the request.

    `own` has, by name, the tokens that members with a prompt of their own read in place of
    `token_ids`; they end in the same `num_read` tokens.
    """

    name: str
    token_ids: tuple[int, ...]
    num_read: int
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.token_ids[len(self.token_ids) - self.num_read :]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(self.token_ids), *map(len, self.own.values()), 0)


class TextEncoder:
    """Tokenizes given texts and notes every mistake. `own`: the prompts of members that have one
    of their own, by name.
    """

    def __init__(self, tokenizer: Tokenizer, own: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._own = {name: tuple(tokenizer.encode(text)) for name, text in own.items()}
        self._mistakes: list[tuple[str, str]] = []

    def texts(self, texts: Sequence[str]) -> list[GivenText]:
        """Whole texts: every token but the first is scored. Raises InvalidRequestError."""
        if self._own:
            raise InvalidRequestError(
                f"the member {next(iter(self._own))!r} reads a prompt of its own in place of the "
                "request's, and texts have none: send prompts and completions",
                param="texts",
            )
        given = []
        for index, text in enumerate(texts):
            name = f"texts[{index}]"
            token_ids = tuple(self._tokenizer.encode(text))
            if len(token_ids) < 2:
                what = "has one token, which nothing predicts" if token_ids else "is empty"
                self._mistakes.append((name, f"{what}: send it as a completion of some prompt"))
            given.append(GivenText(name, token_ids, len(token_ids) - 1))
        return self._checked(given)

    def completions(self, prompts: Sequence[str], completions: Sequence[str]) -> list[GivenText]:
        """Completions after their prompts. Raises InvalidRequestError.

        As in lm-eval, prompt and completion are tokenized as one text, and what is longer than the
        prompt tokenized alone is scored; spaces that end the prompt count to the completion.
        """
        pairs = enumerate(zip(prompts, completions, strict=True))
        return self._checked([self._pair(index, *pair) for index, pair in pairs])

    def _pair(self, index: int, prompt: str, completion: str) -> GivenText:
        name = f"completions[{index}]"
        context = prompt.rstrip()
        num_before = len(self._tokenizer.encode(context))
        whole = tuple(self._tokenizer.encode(prompt + completion))
        scored = whole[num_before:]
        if not completion:
            self._mistakes.append((name, "is empty"))
        elif not scored:
            self._mistakes.append((name, "adds no token to its prompt"))
        elif num_before == 0:
            blank = "is empty, and this tokenizer puts nothing before a text: nothing predicts the"
            self._mistakes.append((f"prompts[{index}]", f"{blank} first token of its completion"))
        own = {member: (*token_ids, *scored) for member, token_ids in self._own.items()}
        return GivenText(name, whole, len(scored), own)

    def _checked(self, given: list[GivenText]) -> list[GivenText]:
        if self._mistakes:
            reasons = "; ".join(f"{name} {reason}" for name, reason in self._mistakes)
            raise InvalidRequestError(reasons, param=self._mistakes[0][0], code="empty_text")
        return given


def check_lengths(given: Sequence[GivenText], max_model_len: int) -> None:
    """Refuse texts longer than the context, all of them by name."""
    wrong = [text for text in given if text.longest > max_model_len]
    if wrong:
        listed = ", ".join(f"{text.name} ({text.longest} tokens)" for text in wrong)
        raise InvalidRequestError(
            f"longer than this model's maximum context length of {max_model_len} tokens: {listed}",
            param=wrong[0].name,
            code="context_length_exceeded",
        )
