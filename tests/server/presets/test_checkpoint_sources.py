"""Checkpoints as sources, beside adapters."""

import shutil
from pathlib import Path

import pytest
import torch

from server.errors import InvalidRequestError, UnprocessableError
from server.presets.catalog import Edit
from tests.server.presets.forge import TIES, VariantWorld, write_checkpoint
from tests.server.presets.tiny import preset


@pytest.fixture
def world(tmp_path: Path):
    world = VariantWorld(tmp_path)
    yield world
    world.close()


@pytest.fixture
def catalog(world):
    return world.open_with_sources()


def test_cards_tell_the_kind(catalog):
    """A source is an adapter or a checkpoint, and its card says which."""
    kinds = {card.name: card.to_json()["kind"] for card in catalog.sources()}
    assert kinds == {"math": "adapter", "code": "adapter", "ft": "checkpoint"}
    card = catalog.source("ft")
    assert (card.state, card.base_name, card.num_bytes) == ("ready", None, 336)


def test_over_http_only_from_source_folders(world, catalog):
    """The rules for paths are those of adapters."""
    world.checkpoint("other", 3)
    assert catalog.register_source("other", "other").kind == "checkpoint"
    outside = write_checkpoint(world.root / "outside", 4)
    with pytest.raises(InvalidRequestError, match="--source-dir"):
        catalog.register_source("secret", str(outside))
    (world.sources / "linked").mkdir()
    (world.sources / "linked" / "model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(InvalidRequestError, match="--source-dir"):
        catalog.register_source("secret", "linked")


def test_an_unfit_checkpoint_is_refused_with_every_reason(world, catalog):
    """Whatever does not fit the base is said at once, by tensor name, and nothing is registered."""
    world.checkpoint(
        "unfit", 3, model__norm__weight=None, model__embed_tokens__weight=torch.ones(9, 4)
    )
    with pytest.raises(UnprocessableError, match="'unfit' cannot be used") as caught:
        catalog.register_source("unfit", "unfit")
    for part in ("model.norm.weight", "another vocabulary, 9 rows"):
        assert part in caught.value.message
    assert caught.value.param == "path"
    assert "unfit" not in [card.name for card in catalog.sources()]


def test_pickle_is_refused(world, catalog):
    """A checkpoint in pickle is refused with the way out."""
    (world.sources / "pickled").mkdir()
    (world.sources / "pickled" / "pytorch_model.bin").touch()
    with pytest.raises(UnprocessableError, match="convert it to safetensors"):
        catalog.register_source("pickled", "pickled")


def test_files_that_change_are_noticed(world, catalog):
    """A checkpoint whose files changed has failed until it is registered again; what was built of
    it goes on serving.
    """
    catalog.create(preset(**TIES), edit=Edit())
    world.checkpoint("ft", 50)
    card = catalog.source("ft")
    assert card.state == "failed"
    assert "changed since" in card.reasons[0]
    assert catalog.resolve("tutor").revision == 1
    with pytest.raises(UnprocessableError, match="changed since"):
        catalog.patch("tutor", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    assert catalog.resolve("tutor").revision == 1
    card, records = catalog.replace_source("ft", "ft", edit=Edit())
    assert (card.state, [record.label for record in records]) == ("ready", ["tutor@2"])


def test_the_folder_is_gone_after_a_restart(world, catalog):
    """A checkpoint whose folder is gone has failed, and so have its presets: the rest serves."""
    catalog.create(preset(**TIES), edit=Edit())
    catalog.create(preset("other"), edit=Edit())
    shutil.rmtree(world.sources / "ft")
    again = world.open()
    assert (again.source("ft").state, again.source("ft").kind) == ("failed", None)
    assert again.preset("tutor").state == "failed"
    assert again.resolve("other").path == "blend"
    world.checkpoint("ft", 1)
    assert world.open().resolve("tutor").revision == 1


def test_content_that_changed_while_stopped(world, catalog):
    """New content in the folder of a checkpoint revises its presets at the start."""
    catalog.create(preset(**TIES), edit=Edit())
    world.checkpoint("ft", 51)
    again = world.open()
    record = again.preset("tutor")
    assert (record.revision, record.state) == (2, "cold")
    assert again.resolve("tutor").revision == 2


def test_hashed_once(world, catalog, monkeypatch):
    """A checkpoint that is open is not read again when the start names it again."""
    opened = []
    monkeypatch.setattr("server.presets.sources.open_checkpoint", lambda *a: opened.append(a))
    catalog.add_source("ft", world.sources / "ft")
    assert opened == []


def test_adapters_and_checkpoints_in_one_recipe(world, catalog):
    """Both kinds are merged in one preset."""
    sources = {name: {"weight": 0.5, "density": 0.5} for name in ("ft", "math")}
    record = catalog.create(preset(method="ties", sources=sources), edit=Edit())
    assert record.path == "variant"
    served = catalog.resolve("tutor")
    assert "model.layers.0.mlp.up_proj.weight" in served.members[0].weights.tensors
    explained = catalog.explain("tutor")
    assert {s["name"]: s["kind"] for s in explained["sources"]} == {
        "ft": "checkpoint",
        "math": "adapter",
    }
    assert explained["path"] == "variant"
    assert explained["variant"]["seconds"] > 0
    assert explained["num_bytes"] == world.variants.num_bytes
    assert explained["twin"]["exact"] is False


def test_a_source_as_base_model(world, catalog):
    """What a recipe is relative to is a source in use too: it is not deleted, and is followed."""
    world.checkpoint("other", 3)
    catalog.register_source("other", "other")
    catalog.create(
        preset(method="task_arithmetic", base_model="other", sources={"ft": {"weight": 0.5}}),
        edit=Edit(),
    )
    assert catalog.source("other").presets == ("tutor",)
    world.checkpoint("other2", 4)
    _, records = catalog.replace_source("other", "other2", edit=Edit())
    assert [record.label for record in records] == ["tutor@2"]


def test_equal_files_written_again_are_read_from_then_on(world, catalog):
    """A checkpoint registered again with the same content, in place or from a copy, is built of
    its new files: no plan that was made of the old ones is used any more.
    """
    catalog.create(preset(**TIES), edit=Edit())
    world.checkpoint("ft", 1)  # the same content in other files
    _, records = catalog.replace_source("ft", "ft", edit=Edit())
    assert records == []
    catalog.patch("tutor", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    catalog.patch("tutor", {"sources": {"ft": {"weight": 0.5}}}, edit=Edit())
    shutil.copytree(world.sources / "ft", world.sources / "copy")
    catalog.register_source("copy", "copy")
    catalog.validate(preset(**TIES), edit=Edit())  # planned once more, of the files in ft
    catalog.replace_source("ft", "copy", edit=Edit())
    shutil.rmtree(world.sources / "ft")
    for source in catalog._snapshot.sources.values():
        if source.plan is not None and source.plan.variant is not None:
            assert source.plan.sources[source.name] is source.content
    serving = catalog._snapshot.presets["tutor"].serving
    assert serving.plan.sources["ft"] is catalog._snapshot.sources["ft"].content
    assert catalog.resolve("ft").path == "variant"
