"""Rows and groups: one request while it is in the engine."""

import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ensemble.errors import EnsembleError
from merging.blend import Blend
from server.engine.block_manager import Key, block_keys
from server.engine.detokenizer import Detokenizer
from server.engine.disagreement import Disagreement
from server.engine.reader import LogprobsReader
from server.engine.request import FinishReason, Output, Reader, Request, TokenLogprobs

if TYPE_CHECKING:
    from server.engine.variant import Variant

logger = logging.getLogger(__name__)

FAILED = "the engine failed while computing this request; the server's log says why"
OVERFLOW = "gave logits that are not finite: its weights, or this blend's, overflow or hold NaN"


class Row:
    """One sequence: its tokens, the KV blocks that it holds, and the blend or variant that it
    sees.
    """

    __slots__ = ("block_table", "keys", "logits", "num_computed", "num_prompt", "tokens", "weights")

    def __init__(self, prompt: tuple[int, ...], weights: "Blend | Variant") -> None:
        self.weights = weights
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.num_computed = 0  # tokens whose keys and values are in the cache
        self.block_table: list[int] = []
        self.keys: list[Key] = []
        self.logits: torch.Tensor | None = (
            None  # [vocab], of the last token, until the group samples
        )

    @property
    def num_pending(self) -> int:
        """Tokens that have not been through the model yet."""
        return len(self.tokens) - self.num_computed

    def prefix_keys(self, block_size: int) -> list[Key]:
        """Keys of the full blocks of all tokens known so far."""
        weights = self.weights
        key = weights.digest if isinstance(weights, Blend) else weights.key
        block_keys(key, self.tokens, block_size, self.keys)
        return self.keys


@dataclass(slots=True)
class Timing:
    """Monotonic times of a group, in seconds."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    inter_token: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Note that the group was scheduled, the first time."""
        self.scheduled = self.scheduled or time.monotonic()

    def token(self, now: float) -> None:
        """Note that a token was sampled at `now`."""
        if self.last_token is None:
            self.first_token = now
        else:
            self.inter_token.append(now - self.last_token)
        self.last_token = now


@dataclass(frozen=True, slots=True)
class Combined:
    """The logits of a group, float32 [vocab]: its row's, or what the rule makes of its rows';
    those that the next token is drawn from; and those of its `rows`, [rows, vocab].
    """

    logits: torch.Tensor
    drawn_from: torch.Tensor
    rows: torch.Tensor


class Group:
    """The rows of one request. They share every sampled token; admission, preemption and abortion
    treat them as one.
    """

    def __init__(self, request: Request, detokenizer: Detokenizer) -> None:
        self.request = request
        self.sampling = request.sampling
        seed = self.sampling.seed
        self.seed = secrets.randbits(64) if seed is None else seed % 2**64
        self.rows = [Row(member.prompt, member.weights) for member in request.members]
        self.detokenizer = detokenizer
        self.timing = Timing(request.arrived)
        self.output_tokens: list[int] = []
        self._prompt_reader = _prompt_reader(request)
        self.reader: Reader | None = self._prompt_reader or request.reader
        self.num_unread = request.text_len  # tokens of the text that the reader has not seen
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.disagreements: list[Disagreement] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.aborted = False
        self.mistake: str | None = None  # why it cannot go on
        self._prompt_sent = False

    @property
    def is_background(self) -> bool:
        """Whether live groups go first."""
        return self.request.priority == "background"

    @property
    def is_reading(self) -> bool:
        """Whether the reader has not seen all of its text."""
        return self.num_unread > 0

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        """Of the text's first token, which nothing predicts, and those that were read so far."""
        if self._prompt_reader is None:
            return []
        first = self.request.members[0].prompt[-self.request.text_len - 1]
        return [TokenLogprobs(first), *self._prompt_reader.tokens]

    def first_logits(self, row: Row) -> int:
        """The first position of `row` whose logits are needed: its last token, or, while a text is
        read, as far before that in every row.
        """
        return len(row.tokens) - 1 - self.num_unread

    @property
    def is_ready(self) -> bool:
        """Whether every row has computed all its tokens, so that the next one can be sampled."""
        return all(row.num_pending == 0 for row in self.rows)

    @property
    def is_decoding(self) -> bool:
        """Whether no row has more than one token left to compute."""
        return all(row.num_pending <= 1 for row in self.rows)

    def take(self, logits: Mapping[Row, torch.Tensor]) -> None:
        """Note what a step computed, float32 [positions, vocab] for each row, from `first_logits`
        on: the reader sees its part, the last token's waits to be sampled from.
        """
        for row, part in logits.items():
            if not (self.request.isolates_rows or torch.isfinite(part.max())):
                self.mistake = self._not_finite(row)
                return
        if self.is_reading and logits:
            self._read([logits[row] for row in self.rows])
        for row, part in logits.items():
            if row.num_pending == 0:
                row.logits = part[-1]

    def _not_finite(self, row: Row) -> str:
        if len(self.rows) == 1:
            return f"the model {OVERFLOW}"
        member = self.request.members[self.rows.index(row)]
        return f"the member {member.name!r} {OVERFLOW}"

    def _read(self, logits: Sequence[torch.Tensor]) -> None:
        assert self.reader is not None
        num_new = min(len(logits[0]), self.num_unread)
        begin = self.request.text_len - self.num_unread
        parts = [part[:num_new] for part in logits]
        try:
            self.reader(begin, parts[0][None] if len(parts) == 1 else torch.stack(parts))
        except EnsembleError as error:  # what the rule says of these logits
            self.mistake = str(error)
        except Exception:
            logger.exception("a reader failed")
            self.mistake = FAILED
        self.num_unread -= num_new

    def combine(self, forbidden: Collection[int] = ()) -> "Combined":
        """What the rule makes of the rows' logits. Raises EnsembleError.

        `forbidden` tokens are not drawn; if the rule rules out all others, the request's
        `lenient_rule` says which one is.
        """
        logits = [row.logits for row in self.rows if row.logits is not None]
        assert len(logits) == len(self.rows), "the group is not ready"
        for row in self.rows:
            row.logits = None
        request = self.request
        if request.rule is None:
            return Combined(logits[0], logits[0], logits[0][None])
        rows = torch.stack(logits)
        combined = request.rule(rows)
        drawn_from = request.draw_rule(rows) if request.draw_rule else combined
        if forbidden and request.lenient_rule and _leaves_none(drawn_from, forbidden):
            drawn_from = request.lenient_rule(rows)
        return Combined(combined, drawn_from, rows)

    def append(self, token: TokenLogprobs, eos_token_ids: frozenset[int], max_len: int) -> Output:
        """Append a sampled token to every row; decide whether the group is finished; return what to
        send.
        """
        token_id = token.token_id
        self.timing.token(time.monotonic())
        self.output_tokens.append(token_id)
        for row in self.rows:
            row.tokens.append(token_id)
        text = self._text_after(token_id, eos_token_ids)
        if self.finish_reason is None and self._is_full(max_len):
            self.finish_reason = "length"
        if self.finish_reason is not None and not isinstance(self.stop_reason, str):
            text += self.detokenizer.flush()  # what a stop string could have swallowed is safe now
        return self.output(text, (token,))

    def _text_after(self, token_id: int, eos_token_ids: frozenset[int]) -> str:
        """New text; a stop token gives none and ends the group, a stop string cuts it and ends the
        group.
        """
        may_stop = len(self.output_tokens) >= self.sampling.min_tokens
        is_eos = token_id in self.sampling.ends(eos_token_ids)
        is_stop = token_id in self.sampling.stop_token_ids
        if may_stop and (is_eos or is_stop):
            self.finish_reason, self.stop_reason = "stop", token_id if is_stop else None
            return ""
        text, stop = self.detokenizer.push(token_id, may_stop=may_stop)
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        return text

    def _is_full(self, max_len: int) -> bool:
        longest = max(len(row.tokens) for row in self.rows)
        return len(self.output_tokens) >= self.sampling.max_tokens or longest >= max_len

    def finish_without_token(self) -> Output:
        """End a group that asked for no tokens: its prompt has been read."""
        for row in self.rows:
            row.logits = None
        self.finish_reason = "length"
        return self.output("", ())

    def fail(self, message: str) -> Output:
        """End the group with an error."""
        self.finish_reason = "error"
        return self.output("", (), error=message)

    def output(
        self, text: str, tokens: tuple[TokenLogprobs, ...], error: str | None = None
    ) -> Output:
        """The group's news of this step."""
        prompt = tuple(self.prompt_logprobs) if not self._prompt_sent and not error else ()
        self._prompt_sent = True
        return Output(
            text=text,
            tokens=tokens,
            num_cached_tokens=self.num_cached_tokens,
            prompt=prompt or None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=error,
        )


def _leaves_none(logits: torch.Tensor, forbidden: Collection[int]) -> bool:
    """Whether no other token is possible, [vocab]."""
    possible = logits.isfinite()
    possible[sorted(forbidden)] = False
    return not bool(possible.any())


def _prompt_reader(request: Request) -> LogprobsReader | None:
    num_top = request.sampling.prompt_logprobs
    if num_top is None:
        return None
    prompt = request.members[0].prompt
    return LogprobsReader(prompt[len(prompt) - request.text_len :], num_top, request.rule)
