"""What goes into the engine and what comes out of it: plain, frozen values."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from merging.blend import Blend

if TYPE_CHECKING:
    from server.engine.variant import Variant

Rule = Callable[[torch.Tensor], torch.Tensor]
"""Combine the float32 logits of a group's rows, [rows, ..., vocab] -> [..., vocab]."""

Priority = Literal["live", "background"]
"""Background groups run on what live ones leave: see `Scheduler`."""

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens. `temperature` 0 is greedy; `top_k` 0 means no limit; counts are in
    tokens.

    `logprobs`, `prompt_logprobs` and, of each member by itself, `member_logprobs` are the number of
    alternatives to report (0: the token's own only), None for none. `eos_token_ids` are the tokens
    that end a text, None for those of the engine's model.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    member_logprobs: int | None = None
    eos_token_ids: frozenset[int] | None = None

    def ends(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """The tokens that end the text beside `stop_token_ids`; `eos_token_ids` are the model's."""
        if self.ignore_eos:
            return frozenset()
        return eos_token_ids if self.eos_token_ids is None else self.eos_token_ids


@dataclass(frozen=True, slots=True)
class Member:
    """One row's share of a request: the prompt that it reads and the weights that it sees, a blend
    on the base or a variant. Errors call it by its `name`.
    """

    prompt: tuple[int, ...]
    weights: "Blend | Variant"
    name: str = ""


class Reader(Protocol):
    """Takes the logits of a given text, on the engine's thread, in pieces and in order, each
    position once. An exception fails its request alone.
    """

    def __call__(self, begin: int, logits: torch.Tensor) -> None:
        """Float32 [rows, positions, vocab]: what each row predicts for the tokens of the text from
        `begin` on.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One group of rows that share every sampled token.

    One member is an ordinary generation; several need a `rule`, unless they generate nothing.
    Tokens are drawn from what `draw_rule` makes of the rows, where that is another distribution
    than the `rule`'s, which log-probabilities are of; from the `lenient_rule`'s, if there is one,
    where `min_tokens` forbids all that the `rule` leaves. Penalties and statistics look at the
    first member's prompt. `choice` tells apart the `n` choices of one prompt: random numbers are
    keyed by (seed, choice, token index). `label`, `path` and `mode` go to the statistics untouched.

    With a `reader` a given text is scored (teacher forcing): the last `num_read` tokens of the
    prompts, which must be the same for every member, after one or more tokens that may differ. None
    means all but the shortest prompt's first token. `prompt_logprobs` asks for a reader of the
    engine's own. A reader that `isolates_rows` is given logits that are not finite too, and says
    itself what they mean; without that they fail the request.
    """

    members: tuple[Member, ...]
    sampling: SamplingParams
    choice: int = 0
    rule: Rule | None = None
    draw_rule: Rule | None = None
    lenient_rule: Rule | None = None
    reader: Reader | None = None
    num_read: int | None = None
    isolates_rows: bool = False
    priority: Priority = "live"
    label: str = ""
    path: str = "base"
    mode: str = "merge"
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        needs_rule = len(self.members) > 1 and self.sampling.max_tokens > 0
        assert self.rule is not None or not needs_rule, "several members need a rule"
        is_echoed = self.sampling.prompt_logprobs is not None
        assert not (is_echoed and self.reader), "one reader a request"
        makes_tokens = self.sampling.max_tokens > 0
        assert not (self.isolates_rows and (self.reader is None or makes_tokens)), "only reads"
        assert not is_echoed or self.rule is not None or len(self.members) == 1
        texts = {member.prompt[len(member.prompt) - self.text_len :] for member in self.members}
        assert len(texts) == 1, "all members read one text"

    @property
    def text_len(self) -> int:
        """Tokens at the end of every prompt that are read, not generated from."""
        if self.reader is None and self.sampling.prompt_logprobs is None:
            return 0
        longest = max(min(len(member.prompt) for member in self.members) - 1, 0)
        text_len = longest if self.num_read is None else self.num_read
        assert 0 <= text_len <= longest, "a text is read after at least one token"
        return text_len


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token, its log-probability at temperature 1, and the most likely alternatives, best
    first.

    `logprob` is None for the first token of a prompt. `top` holds (token id, log-probability)
    pairs. `members` say the same of the token under each member by itself, in their order.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    members: tuple["TokenLogprobs", ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What one step brought for one request.

    `text` is new text that no later token can change and no stop string can swallow, so it may lag
    behind `tokens`; it is cut before a stop string. `tokens` are the tokens sampled since the last
    output (log-probabilities filled when asked for). `prompt` is on the first output only, when
    `prompt_logprobs` was asked for. The last output has a `finish_reason`; with `error` that also
    has a message in `error`.
    """

    text: str
    tokens: tuple[TokenLogprobs, ...]
    num_cached_tokens: int = 0
    prompt: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
