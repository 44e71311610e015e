"""Whose conversation counts: the base's, or a source's."""

from pathlib import Path

import pytest

from server.engine.conversation import Conversation
from server.errors import InvalidRequestError, UnprocessableError
from server.presets.catalog import Catalog, Edit
from server.presets.document import parse_document
from server.presets.served import Overrides
from tests.server.presets.tiny import World, preset

OWN = Conversation("{{ messages }}", {}, frozenset({7}))


def read(folder: Path) -> tuple[Conversation | None, tuple[str, ...]]:
    """Only the folder called math has a way of its own."""
    return (OWN, ("it has its own way",)) if folder.name == "math" else (None, ())


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def catalog(world: World) -> Catalog:
    return world.open_with_sources(read_conversation=read)


@pytest.mark.parametrize("model", ["math", "math:merge"])
def test_a_source_by_name_has_its_own(catalog: Catalog, model: str) -> None:
    """A source is talked to in its own way, in every form of its name; its card warns of it."""
    assert catalog.resolve(model).conversation == OWN
    assert catalog.chat_defaults(model).conversation == OWN
    assert "it has its own way" in catalog.source("math").warnings


@pytest.mark.parametrize("model", ["base", "tiny", "code", "tutor", "tutor@1", "tutor:ensemble"])
def test_all_else_has_the_base_s(catalog: Catalog, model: str) -> None:
    """The base, sources without a way of their own, and presets that do not say are as the base."""
    catalog.create(preset(), edit=Edit())
    assert catalog.resolve(model).conversation is None
    assert catalog.chat_defaults(model).conversation is None


@pytest.mark.parametrize("form", ["{}", "{}@1", "{}:merge", "{}:ensemble", "{}@1:ensemble"])
def test_a_preset_s_choice(catalog: Catalog, form: str) -> None:
    """A preset may talk as one of its sources does, in both modes and every revision."""
    catalog.create(preset(conversation="math"), edit=Edit())
    catalog.create(preset("plain", conversation="base"), edit=Edit())
    for name, expected in (("tutor", OWN), ("plain", None)):
        assert catalog.resolve(form.format(name)).conversation == expected
        assert catalog.chat_defaults(form.format(name)).conversation == expected


def test_weights_of_the_request_keep_it(catalog: Catalog) -> None:
    """What a request changes of the weights does not change how it is talked to."""
    catalog.create(preset(conversation="math"), edit=Edit())
    served = catalog.resolve("tutor", Overrides(weights={"math": 0.1}))
    assert served.conversation == OWN


def test_the_document(catalog: Catalog) -> None:
    """The field is shown where it is set; a change of it is a revision with the same digest."""
    first = catalog.create(preset(), edit=Edit())
    assert "conversation" not in first.to_json()
    edited = catalog.patch("tutor", {"conversation": "math"}, edit=Edit()).record
    assert (edited.revision, edited.digest) == (2, first.digest)
    assert edited.to_json()["conversation"] == "math"
    assert catalog.patch("tutor", {"conversation": None}, edit=Edit()).record.revision == 3
    assert any("its own way" in warning for warning in catalog.explain("tutor")["warnings"])


@pytest.mark.parametrize("name", ["nobody", "code", ""])
def test_only_what_the_preset_uses(name: str) -> None:
    """A preset cannot talk as something that is no source of it; the message names those."""
    with pytest.raises(InvalidRequestError, match="one of base, math") as caught:
        preset(conversation=name)
    assert caught.value.param == "conversation"
    assert parse_document({"name": "x", "conversation": None}).conversation is None


def test_after_a_restart(world: World, catalog: Catalog) -> None:
    """A restart reads the folders again."""
    catalog.create(preset(conversation="math"), edit=Edit())
    again = world.open(read_conversation=read)
    assert again.resolve("tutor").conversation == OWN
    assert again.resolve("math").conversation == OWN


def test_new_files_of_the_same_weights(world: World) -> None:
    """A source that is put again with the same weights and another template has the new one."""
    found: list[Conversation | None] = [None]
    catalog = world.open_with_sources(read_conversation=lambda folder: (found[0], ()))
    catalog.create(preset(conversation="math"), edit=Edit())
    found[0] = OWN
    _, records = catalog.replace_source("math", "math", edit=Edit())
    assert records == []
    assert catalog.resolve("math").conversation == OWN
    assert catalog.resolve("tutor").conversation == OWN


def test_a_source_that_is_gone(catalog: Catalog) -> None:
    """An old revision that talks as a source which was deleted says so, with the way out."""
    catalog.create(preset(conversation="math"), edit=Edit())
    document = preset(sources={"code": {"weight": 0.5}})
    catalog.replace("tutor", document, edit=Edit())
    catalog.delete_source("math")
    with pytest.raises(UnprocessableError, match="register it again"):
        catalog.resolve("tutor@1")
