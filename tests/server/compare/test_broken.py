"""What is broken is told before any margin, and what is only bad is not called so."""

import pytest

from server.compare.findings import Findings
from server.compare.repetition import is_degenerate
from server.compare.report import Report
from server.compare.reporting import make_report
from server.compare.terminal import to_text
from server.compare.wording import standing
from tests.server.compare.synthetic import Planted, PlantedProbe, plant

NAN = "the model gave logits that are not finite"
WASTE = 60.0
"""Noise that drowns every logit."""

ENSEMBLE = Planted("ensemble", "ensemble", noise=0.1, sources=("good", "bad"))
BASE = Planted("base", "base", {None: 0.0}, noise=2.0)
GOOD = Planted("good", "source")
BAD = Planted("bad", "source", {None: 0.0}, noise=WASTE)
MERGE = Planted("merge", "merge", {None: 0.0}, noise=WASTE, sources=("good", "bad"))


def report(*candidates: Planted, **options) -> Report:
    return make_report(plant(candidates, **{"num_cases": 12, **options}), str)


def broken(found: Report) -> dict[str, tuple[str, ...]]:
    return {found.candidates[b.candidate].name: b.signs for b in found.broken}


def without_scores(*candidates: Planted, **options) -> Report:
    return report(*candidates, scorer=None, **options)


def test_a_ruined_merge_is_told_first() -> None:
    """With what shows it, on the prompts that there are, and not as a want of prompts."""
    lost = Planted("ensemble", "ensemble", {None: 0.0}, WASTE, sources=("good", "bad"))
    found = report(lost, BASE, GOOD, BAD, MERGE)
    sentence = found.headline.sentence
    assert found.headline.advice == "broken"
    assert sentence.startswith("the merge is broken: its loss is ")
    assert " nats above the base's; " in sentence
    assert "0 of 12 right, its source good alone 12 of 12" in sentence
    assert "bad is broken alone as well" in sentence
    assert "not enough prompts" not in to_text(found)
    assert set(broken(found)) == {"ensemble", "bad", "merge"}
    assert broken(found)["merge"] == ("loss", "score")


def test_answers_that_could_not_be_computed_are_told_with_the_reason() -> None:
    """A merge of nothing but NaN has no verdict, and that is not all that is said of it."""
    nan = Planted("merge", "merge", sources=("good",), fails=NAN)
    found = report(ENSEMBLE, BASE, GOOD, nan)
    assert found.verdict is None
    assert found.headline.sentence == (
        f"the merge is broken: none of its 12 answers could be computed: {NAN}; "
        "its source good alone works, so its weights or parameters are to blame"
    )
    assert found.errors == (f"prompts 1 to 12: merge gave no answer: {NAN}",)


def test_what_fails_for_everybody_breaks_nobody() -> None:
    """A prompt that is impossible is not a candidate's fault."""
    found = report(Planted("a", fails="too long"), Planted("b", fails="too long"))
    assert found.broken == ()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (((7,) * 12, " STEAM" * 12), "all 12 answers repeat themselves ('STEAM STEAM"),
        (((), ""), "all 12 answers are empty"),
    ],
)
def test_answers_that_say_nothing(says: tuple[tuple[int, ...], str], words: str) -> None:
    """Every one repeats itself or is empty, while the base's do not."""
    mute = Planted("merge", "merge", says=says, sources=("good",))
    found = without_scores(ENSEMBLE, BASE, GOOD, mute)
    assert broken(found) == {"merge": ("repetition",)}
    assert words in found.headline.sentence
    both = without_scores(ENSEMBLE, Planted("base", "base", says=says), GOOD, mute)
    assert broken(both) == {}


def test_nothing_right_against_sources_that_have_all() -> None:
    """Each tag's own source counts, of those that the candidate holds with a positive weight."""
    tags = ("good", "better")
    sources = [
        Planted("good", "source", {"good": 1.0, "better": 0.0}),
        Planted("better", "source", {"good": 0.0, "better": 1.0}),
    ]
    lost = {"good": 0.0, "better": 0.0}
    merge = Planted("merge", "merge", lost, sources=("good", "better"))
    found = report(ENSEMBLE, *sources, merge, tags=tags)
    assert broken(found) == {"merge": ("score",)}
    assert found.headline.sentence.startswith(
        "the merge is broken on these prompts: 0 of 12 right, its sources alone (good, better)"
    )
    unlearned = Planted("merge", "merge", lost)
    assert broken(report(ENSEMBLE, *sources, unlearned, tags=tags)) == {}


def test_five_prompts_are_too_few_for_a_score() -> None:
    """Six that all say the same are not chance at the usual level; five may be."""
    merge = Planted("merge", "merge", {None: 0.0}, sources=("good",))
    assert broken(report(ENSEMBLE, BASE, GOOD, merge, num_cases=5)) == {}
    assert broken(report(ENSEMBLE, BASE, GOOD, merge, num_cases=6)) == {"merge": ("score",)}


def test_a_bad_merge_is_not_broken() -> None:
    """Worse than its source and than the base by much, and yet left to the verdict."""
    bad = Planted("merge", "merge", {None: 0.1}, noise=3.0, sources=("good",))
    found = report(ENSEMBLE, BASE, GOOD, bad, num_cases=40)
    assert found.broken == ()
    assert found.headline.advice == "keep"


def test_a_source_that_mends_the_merge_by_its_absence_is_blamed() -> None:
    """Even if it was not compared by itself."""
    found = without_scores(ENSEMBLE, BASE, MERGE, probes=[PlantedProbe("without", 2, 0.2, "bad")])
    (merge,) = found.broken
    assert merge.culprit == "bad"
    assert "without bad the loss would be " in merge.sentence
    assert found.headline.next_steps[0].startswith("leave bad out")


def test_a_merge_is_held_against_its_best_source_too() -> None:
    """The ensemble of the same sources may be as bad: then it says nothing for the merge."""
    twin = Planted("ensemble", "ensemble", {None: 0.3}, sources=("good",))
    merge = Planted("merge", "merge", {None: 0.3}, sources=("good",))
    found = report(twin, BASE, GOOD, merge, num_cases=40)
    assert found.verdict is not None
    assert found.verdict.conclusion != "inferior"
    assert found.best_source is not None
    assert found.headline.advice == "keep"
    assert "points worse than its source good alone" in found.headline.sentence
    assert found.verdict.sentence in found.headline.more


def test_a_reference_that_is_broken_judges_nobody() -> None:
    """Verdicts against it are left out of what is read first."""
    lost = Planted("ensemble", "ensemble", {None: 0.0}, WASTE, sources=("good",))
    merge = Planted("merge", "merge", {None: 1.0}, noise=0.2, sources=("good",))
    found = report(lost, BASE, GOOD, merge)
    assert found.headline.advice == "none"
    assert found.headline.sentence.startswith("the ensemble is broken: ")
    assert "their verdicts say nothing" in found.headline.sentence
    assert [standing(found, c) for c in found.candidates] == ["broken", *["\N{EN DASH}"] * 3]


def test_an_undecided_verdict_says_what_the_prompts_do_allow() -> None:
    """Wider margins, with how many prompts each needs, and the option that asks for one."""
    findings: Findings = plant([ENSEMBLE, Planted("merge", "merge")], num_cases=12)
    found = make_report(findings, str)
    assert [at.margin for at in found.margins] == [0.05, 0.1, 0.2]
    (said,) = found.headline.more
    assert "what 12 prompts do say: merge is at most 24.2 points worse; within 5 points: " in said
    assert "merge is level with the ensemble" in found.headline.sentence
    assert found.headline.next_steps == (
        "add prompts, or allow a wider margin: --margin 0.1 is 10 points",
    )


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([5] * 8, True),
        ([5] * 7, False),
        ([5, 6] * 6, True),
        ([1, 2, 3, 4] * 4, True),
        ([1, 2, 3, 4, 5] * 4, False),
        (list(range(12)), False),
        ([1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9], False),
    ],
)
def test_repetition(token_ids: list[int], expected: bool) -> None:
    """From the beginning on, and not a loop at the end of an answer."""
    assert is_degenerate(token_ids) is expected
