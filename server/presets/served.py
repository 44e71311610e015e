"""What a model string resolves to, and what a request may change about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from ensemble.rule import Rule, compile_rule
from merging.blend import Blend
from server.engine.conversation import Conversation
from server.engine.variant import Variant
from server.presets.ensemble_settings import MemberSettings, TemperatureOrder
from server.presets.sampling_defaults import SamplingDefaults

Mode = Literal["merge", "ensemble"]
ServedPath = Literal["base", "blend", "variant", "ensemble"]
Auto = Literal["prompt_perplexity", "route"]


@dataclass(frozen=True, slots=True)
class ServedMember:
    """One row of a group: what rules and errors call it, and the weights that it sees.

    `system` is a system prompt of its own, and `prompt` a prompt; None: the request's.
    """

    name: str
    weights: Blend | Variant
    system: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Combination:
    """How the rows of an ensemble become one distribution; see `ensemble.rule.compile_rule`.

    `coefficients` are the members', those that are not run included; `rows` names those that are,
    in their order.
    """

    rule: str
    coefficients: Mapping[str, float]
    rows: tuple[str, ...]
    temperature_order: str = "after"
    plausibility_alpha: float = 0.0

    def compile(self, temperature: float = 1.0) -> Rule:
        """The rule over the rows that run, for a request's temperature. Raises RuleError."""
        rule = compile_rule(
            self.rule,
            self.coefficients,
            temperature_order=self.temperature_order,
            temperature=temperature,
            plausibility_alpha=self.plausibility_alpha,
        )
        return rule.of(self.rows)


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """How conversations with a model are written: whose way (None: the base's), and the variables
    that its chat template gets where a request does not set them.
    """

    conversation: Conversation | None = None
    variables: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """The weights and defaults that a request is pinned to: later edits cannot reach it.

    `model` is the string that the caller sent; `preset` and `revision` are None for the base, for
    sources and for inline recipes. `digest` is the effective one, overrides applied. A merge has
    one member; an ensemble those that its rule needs, and the `combination` that is made of them.
    `is_exact` says whether an ensemble's coefficients are those of the merge in every tensor.
    `weights` are those that were chosen for the request's prompt. `warnings` say why the answer may
    be gibberish. `conversation` is how its conversations are written and what ends its answers;
    None: as those of the base.
    """

    model: str
    preset: str | None
    revision: int | None
    digest: str
    mode: Mode
    path: ServedPath
    members: tuple[ServedMember, ...]
    defaults: SamplingDefaults
    combination: Combination | None = None
    is_exact: bool = True
    weights: Mapping[str, float] | None = None
    warnings: tuple[str, ...] = ()
    conversation: Conversation | None = None

    @property
    def chat(self) -> ChatDefaults:
        """How conversations with it are written."""
        return ChatDefaults(self.conversation, self.defaults.chat_template_kwargs or {})

    @property
    def eos_token_ids(self) -> frozenset[int] | None:
        """The tokens that end its answers; None for those of the base."""
        return None if self.conversation is None else self.conversation.eos_token_ids

    @property
    def label(self) -> str:
        """`tutor@7` for a preset, else the model's id."""
        return self.model if self.preset is None else f"{self.preset}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Overrides:
    """The request's `mergeserve` extension.

    `weights` are by source; `auto` chooses them by the prompt instead, the softer the higher
    `weights_temperature` is. What says how an ensemble combines takes the place of the preset's;
    `members` likewise, field by field. `is_probe`: the server asks by itself, to explain a preset;
    no request can say so.
    """

    mode: str | None = None
    weights: Mapping[str, float] | None = None
    rule: str | None = None
    recipe: Mapping[str, object] | None = None
    auto: Auto | None = None
    weights_temperature: float | None = None
    temperature_order: TemperatureOrder | None = None
    plausibility_alpha: float | None = None
    members: Mapping[str, MemberSettings] = field(default_factory=dict)
    is_probe: bool = False
