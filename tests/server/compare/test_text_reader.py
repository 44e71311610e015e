"""What is kept of a text that several models read."""

import math

import numpy as np
import pytest
import torch

from ensemble.divergence import divergences
from ensemble.rule import compile_rule
from server.compare.reading import MAX_NATS
from server.compare.text_reader import TOP_K, Listener, TextReader

TEXT = [3, 1, 4, 1, 5]


def logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, len(TEXT), 30, generator=generator) * 3


def test_a_voice_of_one_row_reads_that_row() -> None:
    """Log-probabilities of the text's tokens, and divergences of a pair, are those of the rows."""
    rows = logits(2)
    reader = TextReader(TEXT, {0: Listener((0,)), 7: Listener((1,))}, [(0, 7)])
    reader(0, rows)
    reading = reader.reading()
    expected = rows.log_softmax(-1)
    assert reading.token_ids == tuple(TEXT)
    for voice, row in ((0, 0), (7, 1)):
        own = expected[row].gather(1, torch.tensor(TEXT)[:, None]).squeeze(1)
        assert np.allclose(reading.log_probs[voice], own.numpy(), atol=1e-6)
    truth = divergences(expected[0], expected[1])
    pair = reading.pairs[0, 7]
    assert np.allclose(pair.forward_kl, truth.forward_kl.numpy(), atol=1e-6)
    assert np.allclose(pair.js, truth.js.numpy(), atol=1e-6)
    assert pair.same_top.tolist() == truth.same_top.tolist()


def test_a_rule_combines_the_rows_that_it_names() -> None:
    """A voice of several rows is what its rule makes of them, in its own order."""
    rows = logits(3)
    rule = compile_rule("task_arithmetic", {"a": 0.5, "b": 0.25})
    reader = TextReader(TEXT, {0: Listener((2, 0, 1), rule)}, [])
    reader(0, rows)
    combined = (rows[2] + 0.5 * (rows[0] - rows[2]) + 0.25 * (rows[1] - rows[2])).log_softmax(-1)
    own = combined.gather(1, torch.tensor(TEXT)[:, None]).squeeze(1)
    assert np.allclose(reader.reading().log_probs[0], own.numpy(), atol=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_chunks_make_no_difference(cut: int) -> None:
    """However the engine cuts the text, the reading is the same."""
    rows = logits(2)
    listeners = {0: Listener((0,)), 1: Listener((1,))}
    whole = TextReader(TEXT, listeners, [(0, 1)], frozenset({1}))
    whole(0, rows)
    parts = TextReader(TEXT, listeners, [(0, 1)], frozenset({1}))
    parts(0, rows[:, :cut])
    parts(cut, rows[:, cut:])
    first, second = whole.reading(), parts.reading()
    assert np.allclose(first.log_probs[1], second.log_probs[1])
    assert np.allclose(first.pairs[0, 1].js, second.pairs[0, 1].js)
    assert first.tops[1].token_ids.tolist() == second.tops[1].token_ids.tolist()


def test_tops_are_the_most_likely_tokens_of_those_who_are_shown() -> None:
    """Best first, with their probabilities, and for nobody else."""
    rows = logits(2)
    listeners = {0: Listener((0,)), 1: Listener((1,))}
    reader = TextReader(TEXT, listeners, [], frozenset({1}))
    reader(0, rows)
    reading = reader.reading()
    probabilities, token_ids = rows[1].softmax(-1).topk(TOP_K)
    assert reading.tops.keys() == {1}
    assert reading.tops[1].token_ids.tolist() == token_ids.tolist()
    assert np.allclose(reading.tops[1].probabilities, probabilities.numpy(), atol=1e-6)


def test_a_voice_that_is_not_finite_fails_alone() -> None:
    """NaN in one member is told of that member; who does not use it is read."""
    rows = logits(3)
    rows[1, 3, 5] = math.nan
    rule = compile_rule("log_pool", {"a": 1, "b": 1})
    reader = TextReader(
        TEXT,
        {0: Listener((0,)), 1: Listener((1,)), 2: Listener((0, 1), rule), 3: Listener((2,))},
        [(0, 1), (0, 2), (0, 3)],
    )
    reader(0, rows[:, :2])
    reader(2, rows[:, 2:])
    reading = reader.reading()
    assert reading.errors.keys() == {1, 2}
    assert "not finite" in reading.errors[1]
    assert "member 1 (b)" in reading.errors[2]
    assert reading.pairs.keys() == {(0, 3)}
    assert reading.log_probs.keys() == {0, 3}
    assert reading.loss(1) is None


def test_what_is_impossible_counts_as_a_bounded_loss() -> None:
    """A token that a voice rules out makes no mean infinite."""
    rows = logits(2)
    rows[1, 2, TEXT[2]] = -math.inf
    reader = TextReader(TEXT, {0: Listener((0,)), 1: Listener((1,))}, [(0, 1)])
    reader(0, rows)
    reading = reader.reading()
    assert reading.log_probs[1][2] == -MAX_NATS
    assert reading.pairs[0, 1].forward_kl[2] == MAX_NATS
    assert math.isfinite(reading.loss(1) or math.nan)
