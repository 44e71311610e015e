"""What the OpenAI routes answer, in OpenAI's shapes. Fields that are not set are left out."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from starlette.responses import Response

from server.engine.request import FinishReason
from server.presets.served import Mode, Served, ServedPath


class Provenance(BaseModel):
    """The extension key `mergeserve`: what produced the answer.

    `rule` is an ensemble's; `twin` is set where it is not exactly that of the merge. `weights` are
    those that were chosen for the prompt; `warnings` say why the answer may be gibberish.
    """

    preset: str | None
    revision: int | None
    digest: str
    mode: Mode
    path: ServedPath
    rule: str | None = None
    twin: Literal["approximate"] | None = None
    weights: dict[str, float] | None = None
    warnings: list[str] | None = None


class PromptTokensDetails(BaseModel):
    """How much of the prompt did not need to be read."""

    cached_tokens: int


class EnsembleUsage(BaseModel):
    """What an ensemble's members took beside what a request counts once.

    `members` run in a group; `member_prompt_tokens` are those that they read, each its prompt;
    `member_forwards` are their forwards for the generated tokens, one by each for each.
    """

    members: int
    member_prompt_tokens: int
    member_forwards: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    mergeserve: EnsembleUsage | None = None


class MemberLogprobs(BaseModel):
    """What one member says of the tokens: parallel lists, null for those of an echoed prompt."""

    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionLogprobs(BaseModel):
    """Log-probabilities in the shape of `/v1/completions`: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    members: dict[str, MemberLogprobs] | None = None


class CompletionChoice(BaseModel):
    """One text, or in a stream the next piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class TopLogprob(BaseModel):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int]


class MemberLogprob(BaseModel):
    """What one member says of the chosen token, and its own most likely ones."""

    logprob: float
    top_logprobs: list[TopLogprob]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the most likely ones."""

    top_logprobs: list[TopLogprob]
    members: dict[str, MemberLogprob] | None = None


class ChatLogprobs(BaseModel):
    """Log-probabilities in the shape of `/v1/chat/completions`."""

    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class Delta(BaseModel):
    """The next piece of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What a stream's chunk brings of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


Choice = CompletionChoice | ChatChoice | ChatChunkChoice


class Answer(BaseModel):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None
    mergeserve: Provenance | None = None


def provenance(served: Served) -> Provenance:
    """What a request that is pinned to `served` is answered by."""
    made_by = Provenance(
        preset=served.preset,
        revision=served.revision,
        digest=served.digest,
        mode=served.mode,
        path=served.path,
    )
    if served.combination is not None:
        made_by.rule = served.combination.rule
    if not served.is_exact:
        made_by.twin = "approximate"
    if served.weights is not None:
        made_by.weights = dict(served.weights)
    if served.warnings:
        made_by.warnings = list(served.warnings)
    return made_by


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all the chunks of an answer have in common."""

    served: Served
    id: str
    created: int

    @classmethod
    def new(cls, served: Served, prefix: str) -> "Envelope":
        """An envelope with an id of its own."""
        return cls(served, f"{prefix}-{secrets.token_hex(16)}", int(time.time()))

    @property
    def provenance(self) -> Provenance:
        """What produces the answer."""
        return provenance(self.served)

    def wrap(self, kind: str, choices: Sequence[Choice]) -> Answer:
        """An answer with these choices; usage and provenance are left to the caller."""
        return Answer(
            id=self.id,
            object=kind,
            created=self.created,
            model=self.served.model,
            system_fingerprint="fp_" + self.served.digest.rpartition(":")[2][:12],
            choices=list(choices),
        )


def to_json(model: BaseModel, *, ascii_only: bool = False) -> bytes:
    """Compact JSON; with `ascii_only` no character of it can be taken for the end of a line."""
    return model.model_dump_json(exclude_unset=True, ensure_ascii=ascii_only).encode()


def json_response(model: BaseModel, headers: dict[str, str]) -> Response:
    """A response of status 200."""
    return Response(to_json(model), headers=headers, media_type="application/json")
