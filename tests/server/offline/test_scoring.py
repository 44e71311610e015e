"""The comparison of live and written sees what differs."""

import math
from pathlib import Path

import pytest
import torch

from merging.plan import base_plan
from server.offline.opening import open_base
from server.offline.scoring import Scores, _divergence, compare_checkpoint, score_live
from tests.models import save_tiny_model


def scores_of(folder: Path) -> list[Scores]:
    base = open_base("base", folder, None, lambda what, done, total: None).base
    return score_live(folder, base_plan(base), "cpu")


def test_the_same_weights_agree(tmp_path: Path) -> None:
    """The engine and transformers, on every prompt."""
    base = save_tiny_model(tmp_path / "base")
    comparison = compare_checkpoint(scores_of(base), base)
    assert comparison.num_tokens > 100
    assert comparison.largest_difference < 1e-4
    assert comparison.kl < 1e-6
    assert comparison.same_top == 1.0
    assert "same top token 100.0%" in comparison.text()


def test_other_weights_do_not(tmp_path: Path) -> None:
    """Every figure shows it."""
    base, other = (save_tiny_model(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    comparison = compare_checkpoint(scores_of(base), other)
    assert comparison.largest_difference > 1
    assert comparison.kl > 0.1
    assert comparison.same_top < 0.5


def test_what_is_left_out_counts_as_one() -> None:
    """KL of distributions of which two outcomes of four are listed."""
    p = torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25]], dtype=torch.float64)
    expected = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.2 / 0.5)
    assert float(_divergence(p.log(), q.log())) == pytest.approx(expected)
    whole = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    assert float(_divergence(whole, whole)) == 0.0
