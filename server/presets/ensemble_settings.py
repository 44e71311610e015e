"""How an ensemble combines its members: what a preset says of it, and what a request may."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from server.presets.names import NAME_PATTERN

Rule = Literal["task_arithmetic", "log_pool", "linear_pool"]
TemperatureOrder = Literal["after", "before"]
Alpha = Annotated[float, Field(ge=0, le=1)]
MemberName = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
Text = Annotated[str, Field(max_length=2**20)]


class MemberSettings(BaseModel):
    """One member: a source of the preset, or beside them another `model` (by default its name).

    `weight` is its coefficient, in place of what the recipe resolves to. `system` and `prompt` take
    the place of the request's for this member; an empty `system` is none.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    weight: float | None = None
    system: Text | None = None
    prompt: Annotated[Text, Field(min_length=1)] | None = None


class EnsembleSettings(BaseModel):
    """How the ensemble twin combines its members."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    rule: Rule = "task_arithmetic"
    temperature_order: TemperatureOrder = "after"
    plausibility_alpha: Alpha = 0.0
    members: dict[MemberName, MemberSettings] = Field(default_factory=dict)

    def to_json(self) -> dict[str, JsonValue]:
        """Plain JSON values: the rule, and what is not as by default."""
        plain: dict[str, JsonValue] = self.model_dump(mode="json", exclude_defaults=True)
        return {"rule": self.rule, **plain}
