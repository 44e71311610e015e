"""Digests identify content: equal for equal content, different for any change."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.digest import canonical_json, content_digest, json_digest, value_digest


def test_canonical_json_ignores_the_order_of_keys() -> None:
    """The order in which a mapping was filled does not show."""
    assert canonical_json({"b": [1.5], "a": None}) == '{"a":null,"b":[1.5]}'
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})


def test_json_digest_names_its_algorithm() -> None:
    """A digest is "sha256:" and 64 hex digits."""
    prefix, digits = json_digest({}).split(":")
    assert prefix == "sha256"
    assert len(digits) == 64
    assert int(digits, 16) > 0


def test_canonical_json_refuses_nan() -> None:
    """NaN has no JSON, so that none can slip into a digest."""
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json([math.nan])


def test_content_digest_sees_dtype_shape_and_bits() -> None:
    """A tensor's dtype, its shape and every bit of it count."""
    tensor = torch.tensor([[1.0, 2.0]])
    assert content_digest(tensor) == content_digest(tensor.clone())
    others = [tensor.half(), tensor.T, torch.tensor([[1.0, -2.0]]), torch.tensor([[2.0, 1.0]])]
    assert len({content_digest(other) for other in [tensor, *others]}) == 5


def test_content_digest_ignores_the_layout_in_memory() -> None:
    """A transposed view and its copy have one digest."""
    view = torch.arange(6.0).reshape(2, 3).T
    assert content_digest(view) == content_digest(view.contiguous())


def test_value_digest_is_of_the_numbers_not_of_their_type() -> None:
    """The same numbers in bf16 and in float32 have one digest, other numbers another."""
    tensor = torch.tensor([0.5, -0.0, 3.0], dtype=torch.bfloat16)
    assert value_digest(tensor) == value_digest(tensor.float())
    assert value_digest(tensor) == value_digest(torch.tensor([0.5, 0.0, 3.0]))
    assert value_digest(tensor) != value_digest(torch.tensor([0.5, 0.0, 3.001]))
    assert value_digest(tensor) != value_digest(tensor.reshape(3, 1))


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=20))
def test_value_digest_agrees_for_every_type_that_holds_the_values(values: list[float]) -> None:
    """Whatever float16 can hold has one digest in float16 and in float32."""
    half = torch.tensor(values, dtype=torch.float16)
    assert value_digest(half) == value_digest(half.float())
