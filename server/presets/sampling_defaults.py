"""Sampling defaults of a preset, or of the server: used where a request leaves a parameter out."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.presets.template_variables import TemplateVariables


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


NonEmpty = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class SamplingDefaults(BaseModel):
    """Every field is optional; None leaves the choice to OpenAI's default.

    A `seed` of -1 is none, as in a request.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    stop: Annotated[tuple[NonEmpty, ...], BeforeValidator(_one_or_many)] | None = Field(
        None, max_length=16
    )
    stop_token_ids: Annotated[tuple[TokenId, ...], BeforeValidator(_as_tuple)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    chat_template_kwargs: TemplateVariables | None = None

    def over(self, others: "SamplingDefaults") -> "SamplingDefaults":
        """These, and those of `others` where these say nothing."""
        return others.model_copy(update=self.model_dump(exclude_none=True))
