"""What a request is pinned to."""

import dataclasses

import pytest

from server.presets.sampling_defaults import SamplingDefaults
from server.presets.served import Overrides, Served


def served(**fields) -> Served:
    values = {"model": "tutor:merge", "preset": "tutor", "revision": 7}
    rest = {"digest": "d", "mode": "merge", "path": "blend", "members": ()}
    return Served(**{**values, **rest, "defaults": SamplingDefaults(), **fields})


def test_the_label_of_a_preset_has_its_revision():
    """A preset's label names the revision that serves, whatever the model string said."""
    assert served().label == "tutor@7"


def test_the_label_of_anything_else_is_its_model_string():
    """The base and sources have no revision: they are labelled by the string that was sent."""
    assert served(model="math", preset=None, revision=None).label == "math"


def test_it_cannot_change():
    """A request keeps what it was pinned to: the value is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        served().revision = 8


def test_no_overrides_by_default():
    """A request without the extension overrides nothing."""
    assert Overrides() == Overrides(mode=None, weights=None, rule=None, recipe=None)
