"""Names and model strings."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequestError, NotFoundError
from server.presets.names import (
    NAME_PATTERN,
    ModelString,
    check_name,
    is_base,
    name_taken,
    parse_model_string,
)
from tests.server.presets.tiny import tiny_base

names = st.from_regex(NAME_PATTERN, fullmatch=True)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("tutor", ModelString("tutor", None, None)),
        ("tutor@7", ModelString("tutor", 7, None)),
        ("tutor:ensemble", ModelString("tutor", None, "ensemble")),
        ("tutor@7:merge", ModelString("tutor", 7, "merge")),
        ("a.b_c-D@12", ModelString("a.b_c-D", 12, None)),
    ],
)
def test_model_strings(text, parsed):
    """A model string is a name, with an optional revision and an optional mode, in that order."""
    assert parse_model_string(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@7",
        "tutor@",
        "tutor@0",
        "tutor@07",
        "tutor@-1",
        "tutor@1.5",
        "tutor@\u0667",
        "tutor@" + "9" * 30,
        "tutor:",
        "tutor:both",
        "tutor:merge@7",
        "tutor@7@8",
        "tutor\n",
        "-tutor",
        "org/model",
        "x" * 65,
        "\ud800",
    ],
)
def test_what_names_nothing_is_not_found(text):
    """A malformed model string is an unknown model, with the code that OpenAI's clients know."""
    with pytest.raises(NotFoundError) as caught:
        parse_model_string(text)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@given(names, st.none() | st.integers(1, 10**17), st.sampled_from([None, "merge", "ensemble"]))
def test_every_well_formed_model_string_is_understood(name, revision, mode):
    """Putting a model string together and taking it apart gives the parts."""
    text = name + (f"@{revision}" if revision else "") + (f":{mode}" if mode else "")
    assert parse_model_string(text) == ModelString(name, revision, mode)


@given(st.text(max_size=70))
def test_names_are_checked_by_the_pattern(name):
    """A name is accepted exactly if it matches the pattern of names."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name, re.ASCII):
        check_name(name, kind="preset")
    else:
        with pytest.raises(InvalidRequestError, match="is not a preset name"):
            check_name(name, kind="preset")


def test_base_always_means_the_base():
    """The base answers to its id and to `base`, and to nothing else."""
    assert is_base("base", tiny_base("tiny"))
    assert is_base("tiny", tiny_base("tiny"))
    assert not is_base("Base", tiny_base("tiny"))


def test_a_taken_name_says_who_has_it():
    """The error for a taken name says what the name already is."""
    error = name_taken("math", "a source", kind="preset")
    assert error.status == 409
    assert "'math' is already a source" in error.message
