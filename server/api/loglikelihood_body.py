"""What `POST /v1/loglikelihood` takes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.api.fields import refuse
from server.api.schemas import Body, Extension
from server.presets.served import Overrides

MAX_TEXTS = 1024
MAX_TOP = 256

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]

FORMS = "send either texts, or prompts with completions"


class LoglikelihoodBody(Body):
    """Texts to score, or completions to score after their prompts."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    texts: Texts | None = None
    prompts: Texts | None = None
    completions: Texts | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    priority: Literal["live", "background"] | None = None
    user: str | None = None
    mergeserve: Extension | None = None

    @property
    def overrides(self) -> Overrides | None:
        """What the request changes of the preset."""
        return None if self.mergeserve is None else self.mergeserve.overrides()

    @model_validator(mode="after")
    def _check_extension(self) -> Self:
        if self.mergeserve is not None and isinstance(self.mergeserve.weights, str):
            refuse(
                "mergeserve.weights",
                f"{self.mergeserve.weights!r} chooses weights by a prompt that is to be answered; "
                "given texts are scored under weights that are given too",
            )
        if self.mergeserve is not None and self.mergeserve.members_top_k is not None:
            refuse(
                "mergeserve.members_top_k",
                "goes with generating; to score texts under a member by itself, make it the model",
            )
        return self

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.texts is not None:
            for name in ("prompts", "completions"):
                if getattr(self, name) is not None:
                    refuse(name, f"does not go with texts: {FORMS}")
        elif self.prompts is None and self.completions is None:
            refuse("texts", f"is missing: {FORMS}")
        elif self.completions is None:
            refuse("completions", f"is missing: {FORMS}")
        elif self.prompts is None:
            refuse("prompts", f"is missing: {FORMS}")
        elif len(self.prompts) != len(self.completions):
            refuse(
                "completions",
                f"has {len(self.completions)} items and prompts has {len(self.prompts)}: they go "
                "in pairs",
            )
        return self
