"""Requests whose weights are chosen by their prompt: the sources to try, and what follows."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from ensemble.source_weights import best_source, prompt_weights
from server.presets.ensembles import EnsembleMember
from server.presets.resolved import Resolved
from server.presets.served import Auto, Overrides, Served, ServedMember


@dataclass(frozen=True, slots=True)
class Candidates:
    """A preset and the sources among which a prompt chooses, planned. `overrides` are those of the
    request, without the choice.
    """

    preset: Resolved
    sources: tuple[EnsembleMember, ...]
    overrides: Overrides

    def route(self, weights: Mapping[str, float]) -> Resolved:
        """The one source that has all the weight, alone."""
        (best,) = (source for source in self.sources if weights[source.name])
        preset = self.preset
        return Resolved(
            model=preset.model,
            plan=best.plan,
            preset=preset.preset,
            revision=preset.revision,
            defaults=preset.defaults,
            mode=preset.mode,
            weights=weights,
            conversation=preset.conversation,
        )


@dataclass(frozen=True, slots=True)
class Weighing:
    """The same with the weights of the sources at hand, each as a member of its own.

    `finish` pins the request once it has its weights; later edits reach neither.
    """

    kind: Auto
    temperature: float
    sources: tuple[ServedMember, ...]
    finish: Callable[[Mapping[str, float]], Future[Served]]

    def weights(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Weights by source, summing to 1, of their mean log-likelihoods of the prompt. Raises
        StatisticsError.
        """
        if self.kind == "prompt_perplexity":
            return prompt_weights(scores, self.temperature)
        best = best_source(scores)
        return {name: float(name == best) for name in scores}
