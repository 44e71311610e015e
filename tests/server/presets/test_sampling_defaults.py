"""Sampling defaults of a preset."""

import pytest
from pydantic import ValidationError

from server.presets.sampling_defaults import SamplingDefaults


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", 1.5),
        ("top_p", 1),
        ("top_k", -1),
        ("top_k", 0),
        ("min_p", 0.05),
        ("max_tokens", 1),
        ("min_tokens", 0),
        ("presence_penalty", -2),
        ("frequency_penalty", 2),
        ("repetition_penalty", 1.1),
        ("stop_token_ids", [0, 5]),
        ("seed", -3),
    ],
)
def test_values_within_bounds(field, value):
    """Every sampling parameter that a request may set can have a default."""
    defaults = SamplingDefaults.model_validate({field: value})
    dumped = defaults.model_dump(mode="json", exclude_none=True)
    assert dumped == {field: value}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 2),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("presence_penalty", 2.1),
        ("repetition_penalty", 0),
        ("stop", [""]),
        ("stop", ""),
        ("stop", [1]),
        ("stop", ["x" * 1025]),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**31]),
        ("seed", 2**63),
        ("n", 2),
    ],
)
def test_values_out_of_bounds(field, value):
    """A default is refused where a request's own value would be."""
    with pytest.raises(ValidationError):
        SamplingDefaults.model_validate({field: value})


def test_one_stop_string_is_a_list_of_one():
    """As in OpenAI's API, `stop` may be one string."""
    assert SamplingDefaults.model_validate({"stop": "END"}).stop == ("END",)


def test_nothing_is_set_by_default():
    """Without values everything is left to the request and to OpenAI's defaults."""
    assert SamplingDefaults().model_dump(exclude_none=True) == {}
