"""Planted differences come out of the whole aggregation, from readings to the report."""

import math

import pytest

from server.compare.answer import Answer, first_divergence
from server.compare.measures import USUAL_MARGIN
from server.compare.report import Report
from server.compare.reporting import make_report
from tests.server.compare.synthetic import Planted, PlantedProbe, plant

TAGS = ("math", "code")


def report(*candidates: Planted, **options) -> Report:
    return make_report(plant(candidates, **options), str)


def tutor(**options) -> Report:
    """A preset of two sources, each good at its own tag, and a merge that is nearly as good."""
    return report(
        Planted("ensemble", "ensemble", {"math": 0.9, "code": 0.9}, 0.1, 0.04, num_rows=3),
        Planted("base", "base", {"math": 0.1, "code": 0.1}, 2.0),
        Planted("math", "source", {"math": 1.0, "code": 0.0}, 1.0),
        Planted("code", "source", {"math": 0.0, "code": 0.8}, 1.0),
        Planted("merge", "merge", {"math": 0.9, "code": 0.9}, 0.2, 0.01),
        tags=TAGS,
        **{"num_cases": 400, "margin": 0.1, "readings": False, **options},
    )


def test_scores_are_those_that_were_planted() -> None:
    """The planted rate lies within the interval, overall and on each tag."""
    found = tutor()
    for candidate, rate in zip(found.candidates, (0.9, 0.1, 0.5, 0.4, 0.9), strict=True):
        score = candidate.summary.score
        assert score is not None
        assert score.low <= rate <= score.high, candidate.name
    by_tag = {tag.tag: tag for tag in found.tags}
    score = by_tag["code"].candidates[3].summary.score
    assert score is not None
    assert score.low <= 0.8 <= score.high
    assert by_tag["math"].num_prompts == 200


def test_a_planted_non_inferior_merge_ships() -> None:
    """The verdict is about the merge, on right answers, with its cost."""
    found = tutor()
    assert (found.basis, found.candidates[found.subject].name) == ("score", "merge")
    verdict = found.verdict
    assert verdict is not None
    assert (verdict.advice, verdict.conclusion) == ("ship", "non_inferior")
    assert verdict.cost_ratio == pytest.approx(4.0)
    assert "the ensemble (95 % CI), 4.0 \N{MULTIPLICATION SIGN} cheaper: ship" in verdict.sentence
    assert verdict.mcnemar is not None


def test_a_planted_inferior_candidate_does_not() -> None:
    """The base is far worse, and its verdict says so."""
    versus = tutor().candidates[1].versus
    assert versus is not None
    assert versus.verdict is not None
    assert (versus.verdict.advice, versus.verdict.conclusion) == ("keep", "inferior")


def test_retention_is_the_score_over_the_specialists() -> None:
    """Each tag's specialist is the source of its name; overall every prompt has its own."""
    found = tutor()
    assert {tag.tag: tag.specialist for tag in found.tags} == {"math": 2, "code": 3}
    kept = found.tags[1].candidates[4].summary.retention
    assert kept is not None
    assert kept.low <= 0.9 / 0.8 <= kept.high
    overall = found.candidates[4].summary
    assert overall.retention is not None
    assert overall.score is not None
    right = sum(
        prompt.answers[specialist].score or 0.0
        for prompt in found.prompts
        for specialist in [{"math": 2, "code": 3}[prompt.tag or ""]]
    )
    assert overall.retention.estimate == pytest.approx(400 * overall.score.estimate / right)
    specialist = found.tags[0].candidates[2].summary.retention
    assert specialist is not None
    assert specialist.estimate == 1.0


def test_without_a_source_of_the_tags_name_the_best_is_the_specialist() -> None:
    """And without any source there is neither a specialist nor a retention."""
    found = report(
        Planted("ensemble", "ensemble"),
        Planted("weak", "source", {"sums": 0.2}),
        Planted("strong", "source", {"sums": 0.7}),
        tags=("sums",),
    )
    assert found.tags[0].specialist == 2
    alone = report(Planted("a"), Planted("b"), tags=("sums",))
    assert alone.tags[0].specialist is None
    assert alone.candidates[0].summary.retention is None


def test_divergences_grow_with_the_planted_noise() -> None:
    """By both directions, on all three kinds of text, and in the table of llama.cpp's names."""
    found = report(
        Planted("reference"), Planted("near", noise=0.2), Planted("far", noise=1.5), num_cases=20
    )
    near, far = (found.candidates[index].versus for index in (1, 2))
    assert near is not None
    assert far is not None
    assert [d.text for d in near.divergences] == ["given", "reference", "candidate"]
    for low, high in zip(near.divergences, far.divergences, strict=True):
        assert 0 < low.forward_kl < 0.1 < high.forward_kl
        assert low.js < high.js
        assert low.same_top > high.same_top
        assert low.num_positions == 20 * 12
        assert math.isfinite(low.forward_kl_error)
    names = {row.name: row.value for row in near.tables[1].statistics}
    assert names["Mean KLD"] == pytest.approx(near.divergences[1].forward_kl)
    assert names["Same top p"] == pytest.approx(100 * near.divergences[1].same_top)
    assert near.histogram is not None
    assert sum(near.histogram.counts) == 20 * 12


def test_without_a_scorer_the_given_references_decide() -> None:
    """Losses in nats, of which lower is better."""
    found = report(Planted("reference"), Planted("worse", noise=2.0), scorer=None)
    assert found.basis == "held_out_loss"
    assert found.margin == USUAL_MARGIN["held_out_loss"]
    assert found.verdict is not None
    assert found.verdict.conclusion == "inferior"
    versus = found.candidates[1].versus
    assert versus is not None
    assert versus.loss_difference is not None
    assert versus.loss_difference.high < 0
    assert versus.score_difference is None


def test_without_references_imitation_decides() -> None:
    """How well the reference's own answers are predicted; the same model is within any margin."""
    found = report(
        Planted("reference"), Planted("same"), Planted("far", noise=2.0), references=False
    )
    assert found.basis == "fidelity"
    same, far = (found.candidates[index].versus for index in (1, 2))
    assert same is not None
    assert same.verdict is not None
    assert same.verdict.conclusion == "non_inferior"
    assert "within 0.000 nats" in same.verdict.sentence
    assert far is not None
    assert far.verdict is not None
    assert far.verdict.conclusion == "inferior"
    assert {d.text for d in far.divergences} == {"reference", "candidate"}


def test_few_prompts_decide_nothing() -> None:
    """And it is said how many would."""
    found = report(Planted("a", right={None: 0.8}), Planted("b", right={None: 0.8}), num_cases=12)
    assert found.verdict is not None
    assert found.verdict.advice == "undecided"
    assert found.verdict.sentence.startswith("not enough prompts: about ")


def test_the_worst_prompts_are_those_that_are_lost() -> None:
    """At most ten, and none that the candidate has right."""
    found = report(Planted("a"), Planted("b", right={None: 0.5}), num_cases=60)
    versus = found.candidates[1].versus
    assert versus is not None
    assert len(versus.worst) == 10
    assert all(found.prompts[index].answers[1].score == 0 for index in versus.worst)
    ribbon = found.ribbons[0]
    assert ribbon.prompt == versus.worst[0]
    assert len(ribbon.tokens) == 12
    assert [voice.name for voice in ribbon.tokens[0].voices] == ["a", "b"]


def test_the_source_that_does_harm_is_blamed() -> None:
    """Leaving out the planted culprit lowers the loss and closes the gap; the other one not."""
    found = report(
        Planted("ensemble", "ensemble", noise=0.5),
        Planted("merge", "merge", noise=1.5),
        probes=[
            PlantedProbe("without", 1, 0.5, "culprit"),
            PlantedProbe("without", 1, 1.6, "innocent"),
            PlantedProbe("without", 0, 0.4, "culprit"),
            PlantedProbe("without", 0, 0.5, "innocent"),
        ],
        scorer=None,
        tags=TAGS,
    )
    assert found.blame is not None
    effects = {(e.source, e.candidate, e.tag): e for e in found.blame.effects}
    culprit, innocent = (effects[name, 1, None] for name in ("culprit", "innocent"))
    assert culprit.loss_change is not None
    assert culprit.loss_change.high < 0
    assert innocent.loss_change is not None
    assert innocent.loss_change.high > 0
    assert culprit.gap_change is not None
    assert culprit.gap_change.high < 0
    assert innocent.gap_change is not None
    assert innocent.gap_change.high > 0
    assert found.blame.sentences[0].startswith("on all prompts, culprit harms merge: without it ")
    assert ("culprit", 1, "code") in effects


def test_few_prompts_blame_nobody() -> None:
    """Effects are shown, and no sentence is made of them."""
    found = report(
        Planted("ensemble", "ensemble"),
        Planted("merge", "merge", noise=1.5),
        probes=[PlantedProbe("without", 1, 0.0, "culprit")],
        scorer=None,
        num_cases=9,
    )
    assert found.blame is not None
    assert found.blame.effects[0].num_prompts == 9
    assert found.blame.effects[0].loss_change is not None
    assert found.blame.effects[0].loss_change.high < 0
    assert found.blame.sentences == ()


def test_the_difference_is_split_into_linearisation_and_rule() -> None:
    """Changes of loss add up, and the step that was planted as the larger one is."""
    found = report(
        Planted("ensemble", "ensemble", noise=1.0),
        Planted("merge", "merge", noise=0.3),
        probes=[PlantedProbe("twin", 1, 0.2)],
        scorer=None,
    )
    origin = found.origin
    assert origin is not None
    assert origin.linearisation.js < origin.rule.js
    changes = [s.loss_change for s in (origin.linearisation, origin.rule, origin.total)]
    first, second, total = (change.estimate for change in changes if change is not None)
    assert first + second == pytest.approx(total)


def test_costs_are_those_that_were_planted() -> None:
    """Tokens per second, memory, and a forward for each row."""
    cost = tutor(num_cases=40).candidates[0].cost
    assert cost.tokens_per_second == pytest.approx(25.0)
    assert cost.seconds_to_first_token == pytest.approx(0.04)
    assert (cost.kv_bytes, cost.forwards_per_token) == (3 * 1024, 3.0)
    assert cost.num_tokens == 40 * 12


def test_a_failed_answer_is_told_and_left_out() -> None:
    """The prompt counts for neither of a pair, and the others go on."""
    findings = plant([Planted("a"), Planted("b"), Planted("c")], num_cases=30)
    findings.answers[3][1] = Answer(error="it broke")  # type: ignore[index]
    found = make_report(findings, str)
    assert found.errors == ("prompt 4: b gave no answer: it broke",)
    assert (found.candidates[1].summary.num_answers, found.candidates[1].summary.num_errors) == (
        29,
        1,
    )
    verdicts = [found.candidates[index].versus for index in (1, 2)]
    counts = [v.verdict.num_prompts for v in verdicts if v is not None and v.verdict is not None]
    assert counts == [29, 30]
    assert found.prompts[3].answers[1].first_divergence is None


def test_positions_are_there_for_every_text_and_may_be_left_out() -> None:
    """Numbers of every position in both directions and on the reference text."""
    findings = plant([Planted("a"), Planted("b", noise=0.5)], num_cases=3)
    kinds = [p.text for p in make_report(findings, str).prompts[0].positions]
    assert kinds == ["given", "reference", "candidate"]
    short = make_report(findings, str, positions=False)
    assert short.prompts[0].positions == ()
    assert short.prompts[0].answers[0].tokens == ()
    assert short.verdict == make_report(findings, str).verdict


def test_a_report_is_deterministic() -> None:
    """The same findings give the same report, bootstrap and all."""
    findings = plant([Planted("a"), Planted("b", noise=0.5)], scorer=None)
    assert make_report(findings, str) == make_report(findings, str)


def test_the_reference_alone_has_no_verdict() -> None:
    """There is nothing to compare it with."""
    found = report(Planted("only"), num_cases=5)
    assert found.verdict is None
    assert (found.subject, found.reference) == (0, 0)
    assert found.ribbons == ()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), None),
        ((1, 2), (1, 2, 3), 2),
        ((5, 2), (1, 2), 0),
        ((1, 4), (1, 2), 1),
    ],
)
def test_first_divergence(
    first: tuple[int, ...], second: tuple[int, ...], expected: int | None
) -> None:
    """The index of the first token that is not the same, and none for equal texts."""
    assert first_divergence(Answer(token_ids=first), Answer(token_ids=second)) == expected


def test_intervals_cover_what_was_planted() -> None:
    """Of 200 comparisons, the 95 % interval of a score's difference covers the truth as it says."""
    covered = 0
    for seed in range(200):
        findings = plant(
            [Planted("a", right={None: 0.8}), Planted("b", right={None: 0.7})],
            num_cases=60,
            readings=False,
            seed=seed,
        )
        versus = make_report(findings, str, positions=False).candidates[1].versus
        assert versus is not None
        assert versus.score_difference is not None
        covered += versus.score_difference.low <= -0.1 <= versus.score_difference.high
    assert 0.9 <= covered / 200 <= 1.0
