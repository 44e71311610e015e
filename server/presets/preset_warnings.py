"""What is to be warned of in a preset, gathered here and nowhere else.

`doubts` are why it is likely to write gibberish: they make it `suspect`, and are told in every
answer. `notes` are what else its user should know, such as a parameter without effect.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from merging.plan import Plan
from server.presets.document import PresetDocument
from server.presets.doubts import Doubts, ensemble_key
from server.presets.sources import Source


@dataclass(frozen=True, slots=True)
class PresetWarnings:
    """One sentence each."""

    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_suspect(self) -> bool:
        """Whether it is likely to write gibberish."""
        return bool(self.doubts)

    @property
    def all(self) -> tuple[str, ...]:
        """The doubts first."""
        return tuple(dict.fromkeys((*self.doubts, *self.notes)))


def preset_warnings(
    document: PresetDocument,
    plan: Plan,
    sources: Mapping[str, Source],
    doubts: Doubts,
    label: str,
) -> PresetWarnings:
    """What is known now of the preset `label` (tutor@7) with this plan. `sources` are the
    registered ones.
    """
    found = doubts.of_merge(plan)
    if document.mode == "ensemble":
        found = doubts.of_ensemble(plan, document.ensemble.rule, plan.members, ensemble_key(label))
    notes = (*document.ignored, *_notes(plan, sources, found))
    return PresetWarnings(found, notes)


def _notes(plan: Plan, sources: Mapping[str, Source], doubts: tuple[str, ...]) -> Iterator[str]:
    yield from plan.warnings
    for name, content in sorted(plan.sources.items()):
        source = sources.get(name)
        if source is not None and source.digest == content.digest:
            told = (f"sources.{name}: {warning}" for warning in source.warnings)
            yield from (warning for warning in told if warning not in doubts)
