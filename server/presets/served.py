"""What a model string resolves to, and what a request may change about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from merging.blend import Blend
from server.presets.sampling_defaults import SamplingDefaults

Mode = Literal["merge", "ensemble"]
ServedPath = Literal["base", "blend", "variant", "ensemble"]


@dataclass(frozen=True, slots=True)
class Served:
    """The weights and defaults that a request is pinned to: later edits cannot reach it.

    `model` is the string that the caller sent; `preset` and `revision` are None for the base, for
    sources and for inline recipes. `digest` is the effective one, overrides applied. A merge has
    one member.
    """

    model: str
    preset: str | None
    revision: int | None
    digest: str
    mode: Mode
    path: ServedPath
    members: tuple[Blend, ...]
    defaults: SamplingDefaults

    @property
    def label(self) -> str:
        """`tutor@7` for a preset, else the model's id."""
        return self.model if self.preset is None else f"{self.preset}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Overrides:
    """The request's `mergeserve` extension."""

    mode: str | None = None
    weights: Mapping[str, float] | None = None
    rule: str | None = None
    recipe: Mapping[str, object] | None = None
