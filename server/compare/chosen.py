"""Which weights the prompts chose, where the preset does not say them, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from server.compare.report import Report

Weights = Mapping[str, float]


def chosen_weights(report: Report) -> Iterator[str]:
    """One sentence for each candidate whose weights the prompts chose, and each tag."""
    for candidate in report.candidates:
        by_tag: dict[str | None, list[Weights]] = {}
        for prompt in report.prompts:
            if weights := prompt.answers[candidate.index].weights:
                by_tag.setdefault(prompt.tag, []).append(weights)
        for tag, chosen in by_tag.items():
            yield _sentence(candidate.name, tag, chosen)


def _sentence(name: str, tag: str | None, chosen: Sequence[Weights]) -> str:
    whose = "all" if tag is None else f"the {tag!r}"
    if all(set(weights.values()) <= {0.0, 1.0} for weights in chosen):
        counts = {source: sum(weights[source] == 1 for weights in chosen) for source in chosen[0]}
        taken = ", ".join(
            f"{count} to {source}" for source, count in sorted(counts.items(), key=_most) if count
        )
        return f"{name} sent {whose} prompts, {len(chosen)} in all: {taken}"
    means = ", ".join(f"{s} {fmean(weights[s] for weights in chosen):.2f}" for s in chosen[0])
    return f"{name} gave its sources these weights, mean over {whose} prompts: {means}"


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
