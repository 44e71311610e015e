"""Who reads what, and in how many rows."""

import torch

from ensemble.rule import compile_rule
from merging.blend import Blend
from server.compare.answer import Answer
from server.compare.candidate import Probe, Voice
from server.compare.reading_plan import plan_texts, union
from server.engine.request import Member
from tests.server.compare.synthetic import served

GIVEN, FIRST, SECOND, THIRD = (9,), (1, 2), (3,), (4, 5)


def answers(*texts: tuple[int, ...] | None) -> list[Answer]:
    return [Answer(error="it broke") if t is None else Answer(token_ids=t) for t in texts]


def probe(kind: str, of: int, source: str | None = None) -> Probe:
    return Probe(kind, kind, of, served("probe"), source)  # type: ignore[arg-type]


def member(prompt: tuple[int, ...], digest: str) -> Member:
    return Member(prompt, Blend(digest, (), torch.zeros(0, 0)), digest)


def test_both_directions_and_the_given_text() -> None:
    """All read the given text and the reference's answer, two each other answer."""
    plans = plan_texts(0, GIVEN, answers(FIRST, SECOND, THIRD), [])
    assert {text: plan.voices for text, plan in plans.items()} == {
        GIVEN: {0, 1, 2},
        FIRST: {0, 1, 2},
        SECOND: {0, 1},
        THIRD: {0, 2},
    }
    assert plans[FIRST].pairs == {(0, 1), (0, 2)}
    assert plans[THIRD].pairs == {(0, 2)}
    assert plans[FIRST].shown == {0, 1, 2}
    assert plans[GIVEN].shown == plans[SECOND].shown == set()


def test_equal_texts_are_read_once() -> None:
    """By all who would have read any of them."""
    plans = plan_texts(1, SECOND, answers(FIRST, SECOND, FIRST), [])
    assert plans.keys() == {FIRST, SECOND}
    assert plans[FIRST].voices == {0, 1, 2}
    assert plans[FIRST].pairs == {(1, 0), (1, 2)}


def test_who_gave_no_answer_reads_nothing() -> None:
    """And without the reference nothing is read at all."""
    plans = plan_texts(0, GIVEN, answers(FIRST, None), [probe("without", 1, "math")])
    assert all(plan.voices == {0} for plan in plans.values())
    assert plan_texts(1, GIVEN, answers(FIRST, None), []) == {}


def test_probes_are_compared_with_what_they_explain() -> None:
    """The twin with its merge and with the reference; without a source, merge with reference."""
    probes = [
        probe("twin", 1),
        probe("without", 1, "math"),
        probe("without", 1, "code"),
        probe("without", 0, "math"),
    ]
    plans = plan_texts(0, (), answers(FIRST, SECOND), probes)
    assert plans[FIRST].voices == {0, 1, 2, 3, 4, 5}
    assert plans[FIRST].pairs == {(0, 1), (2, 1), (0, 2), (5, 3)}
    assert plans[SECOND].voices == {0, 1}


def test_rows_of_equal_prompts_and_weights_are_one() -> None:
    """And each voice knows its rows, in the order of its rule."""
    rule = compile_rule("log_pool", {"a": 1, "b": 1})
    voices = {
        3: Voice((member((1,), "a"),)),
        7: Voice((member((1,), "b"), member((1,), "a")), rule),
        8: Voice((member((2,), "a"),)),
    }
    members, listeners = union(voices)
    assert [(m.prompt, m.name) for m in members] == [((1,), "a"), ((1,), "b"), ((2,), "a")]
    assert {number: listener.rows for number, listener in listeners.items()} == {
        3: (0,),
        7: (1, 0),
        8: (2,),
    }
    assert listeners[7].rule is rule
