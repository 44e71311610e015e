"""Cards of what can be called."""

from dataclasses import replace

import pytest

from server.errors import NotFoundError
from server.presets.catalog import Edit
from tests.server.presets.tiny import CLOSED_POLICY, OPEN_POLICY, preset


@pytest.fixture
def tutor(catalog):
    """A catalog with tutor at revision 2."""
    catalog.create(preset(), edit=Edit())
    catalog.patch("tutor", {"seed": 1}, edit=Edit())
    return catalog


def test_everything_that_can_be_called_is_listed(tutor):
    """The base comes first, then presets and sources; each can be resolved by its id."""
    cards = tutor.models()
    assert [card.id for card in cards] == ["tiny", "tutor", "code", "math"]
    assert [card.parent for card in cards] == [None, "tiny", "tiny", "tiny"]
    assert [card.revision for card in cards] == [None, 2, None, None]
    for card in cards:
        assert tutor.resolve(card.id).model == card.id
        assert tutor.model(card.id) == card
        assert card.created > 0


def test_the_root_is_where_it_comes_from(world, tutor):
    """The root of a source is its folder, as in vLLM; of anything else it is the base."""
    roots = {card.id: card.root for card in tutor.models()}
    assert roots["math"] == str(world.sources / "math")
    assert roots["tutor"] == roots["tiny"] == "tiny"


def test_folders_are_for_the_operator(world):
    """To others the root is a hub id, or a name; the operator is told the base's folder too."""
    base = world.root / "base"
    base.mkdir()
    catalog = world.open_with_sources(location=str(base))
    catalog.add_source("math", world.sources / "math", "acme/math")
    roots = {card.id: card.root for card in catalog.models(public=True)}
    assert roots == {"tiny": "tiny", "math": "acme/math", "code": "code"}
    assert catalog.model("code", public=True).root == "code"
    roots = {card.id: card.root for card in catalog.models()}
    assert roots == {
        "tiny": str(base),
        "math": "acme/math",
        "code": str(world.sources / "code"),
    }
    hub = world.open(location="acme/tiny")
    assert hub.model("base", public=True).root == "acme/tiny"


def test_ensembles_are_listed_if_asked_for(world):
    """NAME:ensemble beside each preset that a caller may ask for its ensemble."""
    listing = replace(OPEN_POLICY, list_ensembles=True)
    catalog = world.open_with_sources(policy=listing)
    catalog.create(preset(), edit=Edit())
    catalog.create(preset("already", mode="ensemble"), edit=Edit())
    catalog.create(preset("closed", overrides="none"), edit=Edit())
    ids = [card.id for card in catalog.models()]
    assert ids == ["tiny", "already", "closed", "tutor", "tutor:ensemble", "code", "math"]
    assert catalog.model("tutor:ensemble") in catalog.models()
    assert catalog.resolve("tutor:ensemble").mode == "ensemble"
    assert not any(":" in card.id for card in world.open().models())


def test_a_model_that_is_nearly_right(tutor):
    """Is suggested."""
    for wrong in ("tuto", "Tutor:ensemble", "tutr@2"):
        with pytest.raises(NotFoundError, match=r"does not exist\. Did you mean 'tutor'"):
            tutor.resolve(wrong)
    with pytest.raises(NotFoundError, match="Did you mean 'tutor'"):
        tutor.preset("tuter")
    with pytest.raises(NotFoundError, match="Did you mean 'math'"):
        tutor.source("meth")


def test_sources_that_are_not_served_are_not_listed(world, tutor):
    """Without --serve-sources a source is no model."""
    closed = world.open(policy=CLOSED_POLICY)
    assert [card.id for card in closed.models()] == ["tiny", "tutor"]
    with pytest.raises(NotFoundError):
        closed.model("math")


def test_every_model_string_has_a_card(tutor):
    """A card can be asked for by any model string that can be called, and bears that string."""
    assert tutor.model("base") == tutor.model("tiny")
    assert (tutor.model("tutor@1").id, tutor.model("tutor@1").revision) == ("tutor@1", 1)
    assert tutor.model("tutor:merge").revision == 2
    assert tutor.resolve("math:merge").model == tutor.model("math:merge").id == "math:merge"


@pytest.mark.parametrize(
    "model", ["nobody", "math@1", "math:ensemble", "base@1", "tutor@9", "", "a b"]
)
def test_unknown_models(tutor, model):
    """What cannot be called has no card."""
    with pytest.raises(NotFoundError):
        tutor.model(model)
