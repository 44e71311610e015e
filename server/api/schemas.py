"""What the OpenAI routes take.

Every field of OpenAI's is declared; one that is not supported may only have its neutral value.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from server.api.fields import (
    Bias,
    Content,
    Prompts,
    StopStrings,
    TokenId,
    Weights,
    neutral,
    refuse,
)
from server.api.neutral_fields import NeutralChatFields, NeutralCompletionFields
from server.api.template_fields import TemplateFields
from server.presets.ensemble_settings import Alpha, MemberName, MemberSettings, TemperatureOrder
from server.presets.served import Auto, Overrides


class Body(BaseModel):
    """A request body: no unknown fields, no conversions between types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[JsonValue, neutral(False)] = None
    continuous_usage_stats: Annotated[JsonValue, neutral(False)] = None


class Extension(Body):
    """The extension key `mergeserve` of a request."""

    mode: Literal["merge", "ensemble"] | None = None
    weights: Weights | None = None
    weights_temperature: Annotated[float, Field(gt=0)] | None = None
    rule: str | None = None
    temperature_order: TemperatureOrder | None = None
    plausibility_alpha: Alpha | None = None
    members: dict[MemberName, MemberSettings] | None = None
    members_top_k: Annotated[int, Field(ge=0, le=20)] | None = None
    recipe: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _check_weights_temperature(self) -> Self:
        weights: object = self.weights
        if self.weights_temperature is not None and weights != "auto:prompt_perplexity":
            refuse("weights_temperature", 'needs "weights": "auto:prompt_perplexity"')
        return self

    def overrides(self) -> Overrides:
        """The same for the catalog."""
        given: object = self.weights
        auto: Auto | None = None
        if isinstance(given, str):
            auto = "route" if given == "auto:route" else "prompt_perplexity"
        return Overrides(
            mode=self.mode,
            weights=self.weights if auto is None else None,
            rule=self.rule,
            recipe=self.recipe,
            auto=auto,
            weights_temperature=self.weights_temperature,
            temperature_order=self.temperature_order,
            plausibility_alpha=self.plausibility_alpha,
            members=self.members or {},
        )


class SamplingBody(Body):
    """How tokens are drawn. None: not given."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def members_top_k(self) -> int | None:
        """How many alternatives of each member of an ensemble to report; None for nothing."""
        return None


class GenerationBody(SamplingBody):
    """What `/v1/completions` and `/v1/chat/completions` have in common. None: not given."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mergeserve: Extension | None = None

    @property
    def num_choices(self) -> int:
        """Choices for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def overrides(self) -> Overrides | None:
        """What the request changes of the preset."""
        return None if self.mergeserve is None else self.mergeserve.overrides()

    @property
    def members_top_k(self) -> int | None:
        """How many alternatives of each member of an ensemble to report; None for nothing."""
        return None if self.mergeserve is None else self.mergeserve.members_top_k

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "is only allowed with stream: true")
        return self


class CompletionBody(GenerationBody, NeutralCompletionFields):
    """`POST /v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of not in (None, 1, self.num_choices):
            values = " or ".join(map(str, sorted({1, self.num_choices})))
            refuse("best_of", f"is not supported: leave it out, or send {values} (n, or 1)")
        return self

    @model_validator(mode="after")
    def _check_members_top_k(self) -> Self:
        if self.members_top_k is not None and self.logprobs is None:
            refuse("mergeserve.members_top_k", "needs logprobs")
        return self

    @model_validator(mode="after")
    def _check_max_tokens(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            refuse("max_tokens", "must be at least 1, or 0 with echo: true")
        return self


class Message(Body):
    """One message of a conversation. Which roles there are is the chat template's business."""

    role: Annotated[str, Field(min_length=1)]
    content: Content
    name: str | None = None
    refusal: Annotated[JsonValue, neutral()] = None
    audio: Annotated[JsonValue, neutral()] = None
    tool_calls: Annotated[JsonValue, neutral([])] = None
    tool_call_id: Annotated[JsonValue, neutral()] = None
    function_call: Annotated[JsonValue, neutral()] = None
    annotations: Annotated[JsonValue, neutral([])] = None
    id: str | None = None  # of an answer that is sent back
    reasoning: Annotated[JsonValue, neutral("")] = None
    reasoning_content: Annotated[JsonValue, neutral("")] = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        message = {"role": self.role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatBody(GenerationBody, TemplateFields, NeutralChatFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            refuse(
                "max_completion_tokens",
                f"is {self.max_completion_tokens} and max_tokens is {self.max_tokens}: they mean "
                "the same, send one",
            )
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "needs logprobs: true")
        if self.members_top_k is not None and not self.logprobs:
            refuse("mergeserve.members_top_k", "needs logprobs: true")
        return self


class TokenizeBody(Body, TemplateFields):
    """`POST /tokenize`: of a text, or of a conversation."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    mm_processor_kwargs: Annotated[JsonValue, neutral({})] = None
    tools: Annotated[JsonValue, neutral([])] = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            refuse("prompt", "send either prompt, a string, or messages")
        if self.messages is not None and self.add_special_tokens:
            refuse("add_special_tokens", "does not apply to messages: their template adds them")
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if self.prompt is not None and getattr(self, name):
                refuse(name, "applies to messages, not to a prompt")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    tokens: list[int]
