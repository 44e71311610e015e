"""The figures of a merge, against the same worked out by hand."""

import json
from dataclasses import asdict

import pytest
import torch

from merging.diagnosis import CHUNK, Deltas, diagnose

A = torch.tensor([3.0, 4.0, 0.0, 0.0])
B = torch.tensor([-3.0, 4.0, 1.0, 0.0])
BASE = torch.tensor([0.0, 0.0, 0.0, 10.0])
NAME = "model.layers.2.mlp.up_proj.weight"


def test_by_hand() -> None:
    """Norms, cosines, conflicts and shares of two short vectors."""
    merged = 0.5 * A + 2.0 * B  # [-4.5, 10, 2, 0]
    report = diagnose([Deltas(NAME, BASE, {"a": A, "b": B}, merged)], ["a", "b"])
    (group,) = report.groups
    assert (group.layer, group.kind, group.num_elements) == (2, "mlp.up_proj", 4)
    assert group.base_norm == 10.0
    assert group.relative_change == pytest.approx(float(merged.norm()) / 10)
    a, b = group.sources
    assert a.relative_norm == pytest.approx(0.5)
    assert a.contribution == pytest.approx(0.5 * float(A @ merged) / float(merged @ merged))
    assert b.contribution == pytest.approx(2.0 * float(B @ merged) / float(merged @ merged))
    assert a.contribution + b.contribution == pytest.approx(1.0)
    assert b.cosine == pytest.approx(float(B @ merged / (B.norm() * merged.norm())))
    (pair,) = group.pairs
    assert pair.cosine == pytest.approx(7 / (5 * 26**0.5))
    assert pair.sign_conflict == 0.5  # the third is changed by b alone, the fourth by none


def test_groups_add_up() -> None:
    """A group has all its tensors (weight and bias apart), the total has all groups."""
    ones = torch.ones(2, 2)
    tensors = [
        Deltas("model.layers.0.q.weight", ones, {"a": ones}, ones),
        Deltas("model.layers.0.q.bias", torch.ones(2), {}, torch.zeros(2)),
        Deltas("model.layers.1.q.weight", ones, {"a": ones}, ones),
        Deltas("lm_head.weight", torch.ones(3), {"a": torch.ones(3)}, 2 * torch.ones(3)),
    ]
    report = diagnose(tensors, ["a"])
    assert [(g.layer, g.kind) for g in report.groups] == [
        (0, "q"),
        (0, "q.bias"),
        (1, "q"),
        (None, "lm_head"),
    ]
    assert report.total.num_elements == 4 + 2 + 4 + 3
    assert report.total.merged_norm == pytest.approx((4 + 4 + 12) ** 0.5)


def test_figures_without_a_value_are_none() -> None:
    """Nothing is divided by zero, and the report is JSON."""
    zero = torch.zeros(2)
    report = diagnose([Deltas("x", None, {"a": zero, "b": zero}, zero)], ["a", "b", "c"])
    assert report.total.relative_change is None
    assert {s.contribution for s in report.total.sources} == {None}
    assert {p.sign_conflict for p in report.total.pairs} == {None}
    json.dumps(asdict(report), allow_nan=False)


def test_equal_sources_share_equally() -> None:
    """Their coefficients are not determined; their shares are even, and sum to 1."""
    report = diagnose([Deltas("x", BASE, {"a": A, "b": A}, 3 * A)], ["a", "b"])
    assert [s.contribution for s in report.total.sources] == pytest.approx([0.5, 0.5])


def test_what_no_combination_gives_is_missing() -> None:
    """An elementwise method leaves a rest: shares sum to less than 1."""
    merged = torch.tensor([0.0, 4.0, 0.0, 0.0])
    report = diagnose([Deltas("x", BASE, {"a": A}, merged)], ["a"])
    (source,) = report.total.sources
    assert source.contribution == pytest.approx((16 / 25) * 16 / 16)


def test_long_tensors_are_summed_in_parts() -> None:
    """The parts make the whole."""
    torch.manual_seed(0)
    a, b = torch.randn(2, CHUNK + 100)
    report = diagnose([Deltas("x", a, {"a": a, "b": b}, a + b)], ["a", "b"])
    (pair,) = report.total.pairs
    assert pair.cosine == pytest.approx(float(torch.cosine_similarity(a, b, 0)), abs=1e-6)
    assert pair.sign_conflict == pytest.approx(float((a * b < 0).float().mean()), abs=1e-6)
    assert report.total.sources[0].contribution == pytest.approx(
        float(a @ (a + b) / (a + b).norm() ** 2), rel=1e-4
    )
