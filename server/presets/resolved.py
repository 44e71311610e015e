"""What a model string means, before its weights are at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merging.blend import Blend
from merging.plan import Plan
from server.engine.conversation import Conversation
from server.engine.variant import Variant
from server.presets.ensembles import Ensemble, EnsembleMember
from server.presets.sampling_defaults import SamplingDefaults
from server.presets.served import Mode, Served, ServedMember


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model string's plan, whose weights may have to be built yet, and its `ensemble` if it runs
    as one. `weights` are those that were chosen for a prompt, `conversation` is whose way of
    writing conversations it has (None: the base's).
    """

    model: str
    plan: Plan
    preset: str | None = None
    revision: int | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    ensemble: Ensemble | None = None
    mode: Mode = "merge"
    weights: Mapping[str, float] | None = None
    conversation: Conversation | None = None

    @property
    def label(self) -> str:
        """`tutor@7` for a preset, else the model's id."""
        return self.model if self.preset is None else f"{self.preset}@{self.revision}"

    @property
    def members(self) -> tuple[EnsembleMember, ...]:
        """The rows that run."""
        if self.ensemble is None:
            return (EnsembleMember(self.model, self.plan),)
        return self.ensemble.members

    def served(self, weights: Sequence[Blend | Variant]) -> Served:
        """The same with the weights of its members at hand."""
        ensemble = self.ensemble
        members = tuple(
            ServedMember(member.name, own, member.system, member.prompt)
            for member, own in zip(self.members, weights, strict=True)
        )
        return Served(
            model=self.model,
            preset=self.preset,
            revision=self.revision,
            digest=self.plan.digest if ensemble is None else ensemble.digest,
            mode=self.mode,
            path=self.plan.path if ensemble is None else "ensemble",
            members=members,
            defaults=self.defaults,
            combination=None if ensemble is None else ensemble.combination,
            is_exact=ensemble is None or ensemble.is_exact,
            weights=self.weights,
            conversation=self.conversation,
        )
