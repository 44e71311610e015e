"""Every method equals mergekit 0.1.5, up to float32 rounding, over a grid of settings.

Needs MERGESERVE_MERGEKIT_PYTHON, a Python that has mergekit 0.1.5; `make conformance` sets it up.
"""

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from itertools import groupby

import pytest
import torch

from merging.errors import PlanError
from merging.methods import METHODS
from merging.methods.random import Random
from merging.methods.selection import largest
from tests.merging.methods.conformance.grid import (
    BASE,
    Case,
    cases,
    native_cases,
    pooled_cases,
    tensors,
)
from tests.merging.methods.conformance.run import merge_by_mergekit
from tests.merging.methods.one_tensor import merge, values_of

PYTHON = os.environ.get("MERGESERVE_MERGEKIT_PYTHON", "")
if not PYTHON:
    pytest.skip("MERGESERVE_MERGEKIT_PYTHON is not set", allow_module_level=True)

TENSORS = tensors()
CASES = {name: list(of) for name, of in groupby(cases(), key=lambda case: case.method)}
Expected = Callable[[Case], torch.Tensor | str]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """What mergekit makes of a case, or the text of its error."""
    every = [case for group in CASES.values() for case in group]
    every += [*native_cases(), *pooled_cases()]
    merged, errors = merge_by_mergekit(PYTHON, every, TENSORS, tmp_path_factory.mktemp("mergekit"))
    return lambda case: merged[case.id] if case.id in merged else errors[case.id]


def stored(case: Case, model: str) -> torch.Tensor:
    return TENSORS[f"{case.set}/{model}/{case.tensor}"].float()


def merged_here(case: Case) -> torch.Tensor:
    """The same by this project; where mergekit takes a base as one more input, so does it."""
    base, parameters = stored(case, BASE), dict(case.parameters)
    sources = [stored(case, model) for model in case.sources]
    if case.has_base and METHODS[case.method].base == "input":
        sources = [base, *sources]
        if "weight" in parameters:
            parameters["weight"] = (0.25, *parameters["weight"])  # type: ignore[misc]
    has_base = case.has_base and METHODS[case.method].base != "input"
    return merge(case.method, base if has_base else None, sources, **parameters)


def ambiguous(case: Case) -> torch.Tensor:
    """Elements of which a trim could as well have kept others: those equal to the smallest or
    largest that it kept, if it also dropped such.
    """
    method, base = METHODS[case.method], stored(case, BASE)
    found = torch.zeros(base.shape, dtype=torch.bool)
    if method.trim is None or method.is_random:
        return found
    values = values_of(method, len(case.sources), **case.parameters)
    for index, model in enumerate(case.sources):
        delta = stored(case, model) - base
        trimmed = method.trim(delta, random=Random(0, "", ""), **method.trim_values(values, index))
        found |= tied(delta.abs(), trimmed.kept)
    return found


def tied(sizes: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    if not kept.any():
        return torch.zeros_like(kept)
    ends = [sizes == end for end in (sizes[kept].min(), sizes[kept].max())]
    return sum((end for end in ends if (end & ~kept).any()), torch.zeros_like(kept))


def has_an_answer(case: Case) -> bool:
    """Whether the result does not hang on rounding, nor on which of equal elements is taken."""
    base = stored(case, BASE)
    deltas = [stored(case, m) - base * case.has_base for m in case.sources]
    if case.method == "multislerp" and len(deltas) > 1:
        weights: tuple[float, ...] = case.parameters["weight"]  # type: ignore[assignment]
        mean = sum(w * d / d.norm() for w, d in zip(weights, deltas, strict=True) if d.norm())
        return float(torch.as_tensor(mean).norm()) > 1e-5
    if case.method == "sce":
        variance = torch.stack(deltas).var(dim=0, correction=0)
        share = float(case.parameters["select_topk"])  # type: ignore[arg-type]
        count = int(int(variance.count_nonzero()) * share)
        return share == 1 or not tied(variance, largest(variance, count)).any()
    return True


@pytest.mark.parametrize("name", CASES)
def test_the_method_equals_mergekit(name: str, expected: Expected) -> None:
    """Within 1e-6 of the largest element; and whatever mergekit refuses is not asked of it."""
    different, refused, compared = [], [], 0
    for case in CASES[name]:
        wanted = expected(case)
        if isinstance(wanted, str):
            refused.append((case.id, wanted))
        elif has_an_answer(case):
            compared += 1
            error = torch.where(ambiguous(case), 0.0, merged_here(case) - wanted).abs().max()
            if not error <= 1e-6 * max(1.0, float(wanted.abs().max())):
                different.append((case.id, float(error)))
    assert not different
    assert compared >= 0.8 * len(CASES[name]), refused[:3]


@pytest.mark.parametrize("case", list(native_cases()), ids=lambda case: case.id)
def test_bfloat16_arithmetic_is_the_only_difference(case: Case, expected: Expected) -> None:
    """What mergekit computes in bfloat16 by default is this result, with its rounding: 95 % of the
    elements are within 1 % of the tensor's norm; others may fall on the other side of a choice.
    """
    wanted = expected(case)
    assert isinstance(wanted, torch.Tensor), wanted
    error = (merged_here(case) - wanted.float()).abs().flatten().quantile(0.95)
    assert float(error) < 0.01 * float(wanted.float().square().mean().sqrt())


@pytest.mark.parametrize("case", list(pooled_cases()), ids=lambda case: case.id)
def test_random_methods_have_the_same_statistics(case: Case, expected: Expected) -> None:
    """Share of changed elements, mean, mean size and norm of the change, within six deviations."""
    wanted, base = expected(case), stored(case, BASE)
    assert isinstance(wanted, torch.Tensor), wanted
    ours, theirs = (_statistics(result - base) for result in (merged_here(case), wanted))
    density: tuple[float, ...] = case.parameters["density"]  # type: ignore[assignment]
    tolerance = 6 / math.sqrt(density[0] * base.numel())
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def _statistics(change: torch.Tensor) -> Mapping[str, float]:
    return {
        "share": float((change.abs() > 1e-6).float().mean()),
        "mean": float(change.mean()),
        "size": float(change.abs().mean()),
        "norm": float(change.square().mean().sqrt()),
    }


def test_what_mergekit_cannot_answer_is_finite_or_refused(expected: Expected) -> None:
    """Where mergekit raises, this project has a finite result or says why there is none."""
    every = [case for group in CASES.values() for case in group]
    for case in (case for case in every if isinstance(expected(case), str)):
        with contextlib.suppress(PlanError):
            assert torch.isfinite(merged_here(case)).all(), case.id
