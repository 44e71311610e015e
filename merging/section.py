"""A section of a merged model: consecutive layers that are made of the same models."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Section:
    """A slice of a recipe, or all layers of a recipe without slices.

    `index`: its number in the recipe's slices, None without. `base_model`: what deltas are relative
    to; None if the method works on whole tensors. `sources`: the other models, sorted by name.
    `starts`: for each of all these, its layer that is the first of the section.
    """

    index: int | None
    base_model: str | None
    sources: tuple[str, ...]
    starts: Mapping[str, int] = field(hash=False)
    num_layers: int

    @property
    def where(self) -> str:
        """The prefix of messages about it."""
        return "" if self.index is None else f"slices[{self.index}]: "

    def depth(self, offset: int | None) -> float:
        """Where in the section a layer lies, from 0 (the first) to 1 (the last).

        It is mergekit's `t`: 0 outside the layers (None), 1 in a section of one layer.
        """
        if offset is None:
            return 0.0
        return offset / (self.num_layers - 1) if self.num_layers > 1 else 1.0
