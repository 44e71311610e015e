"""What models are called in mergekit's configurations."""

from pathlib import Path

import pytest

from server.errors import InvalidRequestError, UnprocessableError
from server.presets.catalog import Edit
from tests.server.presets.forge import VariantWorld
from tests.server.presets.tiny import preset


@pytest.fixture
def world(tmp_path: Path):
    world = VariantWorld(tmp_path)
    yield world
    world.close()


@pytest.fixture
def catalog(world):
    """The source hub was registered from a hub id."""
    catalog = world.open_with_sources()
    catalog.add_source("hub", world.checkpoint("hub-snapshot", 9), "someone/some-model")
    return catalog


def config(world, model: str) -> dict:
    return {
        "merge_method": "ties",
        "base_model": str(world.root / "tiny"),
        "models": [{"model": model, "parameters": {"weight": 0.5, "density": 0.5}}],
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("ft", "ft"),
        ("{sources}/ft", "ft"),
        ("{sources}/../sources/ft/", "ft"),
        ("hub-snapshot", "hub"),  # a path in a source folder
        ("someone/some-model", "hub"),
    ],
)
def test_models_are_found(world, catalog, model, name):
    """A model is a source by its name, its path, or the hub id it was registered from."""
    fields = catalog.mergekit.read(config(world, model.format(sources=world.sources)), "tutor")
    assert list(fields["sources"]) == [name]
    assert fields.get("base_model", "base") == "base"


@pytest.mark.parametrize("model", ["nope", "someone/other", "/etc", "a\0b", "../.."])
def test_models_that_are_not_registered(world, catalog, model):
    """A model that is no source is refused by name."""
    with pytest.raises(InvalidRequestError, match="mergekit: ") as caught:
        catalog.mergekit.read(config(world, model), "tutor")
    assert caught.value.param == "mergekit"


def test_the_base_is_known_by_any_of_its_names(world, catalog):
    """`base`, the base's id and where it is from all mean the resident base."""
    for name in ("base", "tiny", str(world.root / "tiny")):
        fields = catalog.mergekit.read({**config(world, "ft"), "base_model": name}, "tutor")
        assert fields.get("base_model", "base") == "base"


def test_there_and_back(world, catalog):
    """A preset made from a configuration gives it back, with names that mergekit can load."""
    given = config(world, "someone/some-model")
    document = preset(**{"sources": {}, **catalog.mergekit.read(given, "tutor")})
    record = catalog.create(document, edit=Edit())
    back = catalog.mergekit.write(record)
    assert back["models"][0]["model"] == "someone/some-model"
    assert back["base_model"] == given["base_model"]
    assert back["merge_method"] == "ties"
    again = catalog.mergekit.read(back, "tutor")
    assert preset(**{"sources": {}, **again}).recipe() == document.recipe()


def test_what_mergekit_does_not_have(catalog):
    """A method of ours has no form in mergekit: refused, with its name."""
    document = preset(
        method="lines",
        sources={"math": {"weight": 1}},
        parameters={"alpha": 0.5, "beta": 0.5},
    )
    record = catalog.create(document, edit=Edit())
    with pytest.raises(UnprocessableError, match="lines"):
        catalog.mergekit.write(record)
