"""Every deterministic method gives what mergekit 0.1.5 gave for small tensors.

The values are outputs of mergekit (conformance/make_golden.py); the whole grid is compared by
`make conformance`.
"""

import json
from pathlib import Path

import pytest
import torch

from merging.methods import METHODS
from tests.merging.methods.one_tensor import merge

GOLDEN = json.loads(Path(__file__).with_name("conformance").joinpath("golden.json").read_text())
MODELS = {name: torch.tensor(v).reshape(GOLDEN["shape"]) for name, v in GOLDEN["models"].items()}
BASE_WEIGHT = 0.25
"""What the cases of `linear` give a base, which is one more input there."""


@pytest.mark.parametrize("method", dict.fromkeys(case["method"] for case in GOLDEN["cases"]))
def test_small_tensors_are_merged_as_by_mergekit(method: str) -> None:
    """Within 2e-6 (the values are rounded to 1e-6), at several settings."""
    for case in (case for case in GOLDEN["cases"] if case["method"] == method):
        parameters = {
            k: tuple(v) if isinstance(v, list) else v for k, v in case["parameters"].items()
        }
        sources, base = [MODELS[name] for name in case["sources"]], MODELS["base"]
        is_input = METHODS[method].base == "input"
        if case["has_base"] and is_input:
            sources = [base, *sources]
            if "weight" in parameters:
                parameters["weight"] = (BASE_WEIGHT, *parameters["weight"])
        merged = merge(
            method, base if case["has_base"] and not is_input else None, sources, **parameters
        )
        wanted = torch.tensor(case["merged"]).reshape(GOLDEN["shape"])
        torch.testing.assert_close(merged, wanted, rtol=1e-6, atol=2e-6)


def test_every_method_of_mergekit_has_golden_values() -> None:
    """All 20 methods of mergekit 0.1.5 are there."""
    assert len({case["method"] for case in GOLDEN["cases"]}) == 20
