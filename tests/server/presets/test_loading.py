"""Start-up on what the database and the folders hold."""

import shutil

import pytest

from server.errors import UnprocessableError
from server.presets.catalog import Edit
from tests.server.presets.tiny import preset, tiny_base, write_adapter

OTHER_BASE = tiny_base(character="1")
SHALLOW_BASE = tiny_base(character="2", num_layers=1)


@pytest.fixture
def tutor(world, catalog):
    """A catalog with tutor at revision 2, and its world."""
    catalog.create(preset(), edit=Edit(author="ada"))
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit(message="more"))
    return catalog


def test_an_empty_database(world):
    """A new database has no presets and no sources, and the base can be called."""
    catalog = world.open()
    assert (catalog.presets(), catalog.sources()) == ([], [])
    assert catalog.resolve("base").path == "base"


def test_everything_is_there_again(world, tutor):
    """After a restart presets, sources, histories and digests are what they were."""
    before = tutor.presets(), tutor.sources(), tutor.revisions("tutor")
    explained = tutor.explain("tutor")
    catalog = world.open()
    assert (catalog.presets(), catalog.sources(), catalog.revisions("tutor")) == before
    assert catalog.explain("tutor") | {"build_seconds": 0} == explained | {"build_seconds": 0}
    assert catalog.resolve("tutor").digest == before[0][0].digest


def test_a_folder_that_changed_is_a_new_content(world, tutor, caplog):
    """A source whose folder changed while the server was down revises its presets, and says so."""
    old = tutor.preset("tutor")
    world.adapter("math", 99)
    catalog = world.open()
    record = catalog.preset("tutor")
    assert (record.label, record.state) == ("tutor@3", "ready")
    assert record.message == "source math changed while the server was stopped"
    assert record.document == old.document
    assert record.digest != old.digest
    assert catalog.source("math").updated_at > catalog.source("math").created_at
    assert "source math" in caplog.text
    assert "tutor" in caplog.text
    source = catalog.source("math")
    assert world.open().preset("tutor").revision == 3
    assert world.open().source("math") == source


def test_old_content_is_kept(world, tutor):
    """A folder that changed while the server was down does not take the old content with it."""
    old = tutor.resolve("tutor@1").digest
    world.adapter("math", 99)
    for _ in range(2):
        catalog = world.open()
        assert catalog.resolve("tutor@1").digest == old
        assert catalog.preset("tutor", 1).digest == old
    shutil.rmtree(world.sources / "math")
    assert world.open().resolve("tutor@1").digest == old


@pytest.mark.parametrize("damage", ["gone", "empty", "other"])
def test_old_content_that_is_gone_is_said_to_be(world, tutor, damage):
    """An old revision whose content is gone nevertheless has failed, and says why."""
    folder = world.store.contents_folder / tutor.source("math").digest.removeprefix("sha256:")
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "empty":
        (folder / "adapter_model.safetensors").unlink()
    else:
        write_adapter(folder, 98)
    world.adapter("math", 99)
    catalog = world.open()
    with pytest.raises(UnprocessableError, match=r"sources\.math: ") as caught:
        catalog.resolve("tutor@1")
    assert caught.value.code == "content_gone"
    labels = [record.label for record in catalog.revisions("tutor")]
    assert labels == ["tutor@3", "tutor@2", "tutor@1"]
    if damage != "other":  # that shows only when it is read
        record = catalog.preset("tutor", 1)
        assert record.state == "failed"
        assert "is gone" in record.to_json()["reasons"][0]
        assert catalog.explain("tutor", 1)["reasons"] == list(record.reasons)
    assert catalog.rollback("tutor", 1, edit=Edit()).record.label == "tutor@4"


def test_contents_that_cannot_be_kept_do_not_stop_the_start(world, tutor, caplog):
    """If a copy cannot be made at the start, the log says so and everything is served."""
    folder = world.store.contents_folder
    shutil.rmtree(folder)
    folder.touch()
    assert world.open().resolve("tutor").label == "tutor@2"
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    "offsets", ["[0, Infinity]", "[0, 1e999]", "[0, 1" + "0" * 5000 + "]", '[0, "\\ud800"]']
)
def test_no_source_stops_the_start(world, tutor, offsets):
    """Whatever a folder holds by the next start, its source fails and the server starts."""
    tensor = f'{{"x": {{"dtype": "F32", "shape": [1], "data_offsets": {offsets}}}}}'.encode()
    weights = world.sources / "math" / "adapter_model.safetensors"
    weights.write_bytes(len(tensor).to_bytes(8, "little") + tensor + bytes(4))
    catalog = world.open()
    assert catalog.source("math").state == "failed"
    assert catalog.resolve("code").path == "blend"
    with pytest.raises(UnprocessableError, match="'math' cannot be called"):
        catalog.resolve("math")


def test_old_content_elsewhere_is_read_again(world, tutor):
    """After a restart an old revision is read from the folder that its content came from."""
    old = tutor.resolve("tutor").digest
    world.adapter("math2", 99)
    tutor.replace_source("math", "math2", edit=Edit())
    assert world.open().resolve("tutor@2").digest == old


@pytest.mark.parametrize("damage", ["missing", "truncated", "alien"])
def test_a_broken_source_fails_its_presets_only(world, tutor, damage, caplog):
    """A source that cannot be read fails the presets that use it; the rest is served."""
    tutor.create(preset("coder", sources={"code": {"weight": 1}}), edit=Edit())
    if damage == "missing":
        shutil.rmtree(world.sources / "math")
    elif damage == "truncated":
        (world.sources / "math" / "adapter_model.safetensors").write_bytes(b"\x10")
    else:
        write_adapter(world.sources / "math", 0, base_digest=SHALLOW_BASE.digest)
    catalog = world.open()
    source, record = catalog.source("math"), catalog.preset("tutor")
    assert source.state == "failed"
    assert source.reasons
    assert (record.label, record.state) == ("tutor@2", "failed")
    assert record.to_json()["digest"] == record.digest
    assert [record.label for record in catalog.presets()] == ["coder@1", "tutor@2"]
    assert "tutor" in [card.id for card in catalog.models()]
    for model in ("tutor", "tutor@2"):
        with pytest.raises(UnprocessableError, match="math"):
            catalog.resolve(model)
    with pytest.raises(UnprocessableError, match="math"):
        catalog.patch("tutor", {"description": "x"}, edit=Edit())
    assert catalog.resolve("coder").label == "coder@1"
    assert "source math cannot be used" in caplog.text
    assert "preset tutor cannot be built" in caplog.text


def test_a_failed_preset_can_be_led_elsewhere(world, tutor):
    """A preset that failed can be edited to what can be built, rolled back, or deleted."""
    shutil.rmtree(world.sources / "math")
    catalog = world.open()
    with pytest.raises(UnprocessableError):
        catalog.replace("tutor", catalog.preset("tutor").document, edit=Edit())
    patch = {"sources": {"math": None, "code": {"weight": 1}}}
    assert catalog.patch("tutor", patch, edit=Edit()).record.label == "tutor@3"
    assert catalog.resolve("tutor").label == "tutor@3"
    catalog.delete("tutor", edit=Edit())


def test_a_source_that_comes_back_heals(world, tutor):
    """A preset whose source is there again at the next start serves as before."""
    before = tutor.resolve("tutor").digest
    shutil.move(world.sources / "math", world.root / "math")
    world.open()
    shutil.move(world.root / "math", world.sources / "math")
    catalog = world.open()
    assert catalog.preset("tutor").state == "ready"
    assert catalog.resolve("tutor").label == "tutor@2"
    assert catalog.resolve("tutor").digest == before


def test_another_base_plans_again(world, tutor, caplog):
    """On another base all revisions have other digests: those that a call reports."""
    before, before_old = tutor.preset("tutor"), tutor.preset("tutor", 1).digest
    catalog = world.open(base=OTHER_BASE)
    record = catalog.preset("tutor")
    assert (record.label, record.state) == ("tutor@2", "ready")
    assert record.digest != before.digest
    assert record.digest == catalog.resolve("tutor").digest
    old = catalog.resolve("tutor@1").digest
    assert old not in (before.digest, before_old)
    assert catalog.preset("tutor", 1).digest == catalog.explain("tutor", 1)["digest"] == old
    assert [record.digest for record in catalog.revisions("tutor")] == [record.digest, old]
    assert caplog.text == ""
    assert world.open().preset("tutor").digest == before.digest


def test_another_base_that_does_not_fit(world, tutor):
    """On a base that the sources do not fit the presets fail, and come back on the right one."""
    before = tutor.preset("tutor")
    catalog = world.open(base=SHALLOW_BASE)
    assert catalog.preset("tutor").state == "failed"
    assert "no linear layer" in catalog.explain("tutor")["reasons"][0]
    with pytest.raises(UnprocessableError, match="no linear layer"):
        catalog.resolve("tutor")
    assert catalog.resolve("base").path == "base"
    assert world.open().preset("tutor") == before


def test_a_base_with_the_name_of_a_preset(world, tutor):
    """If the base's id became a preset's name, the name means the base, and the preset is kept."""
    catalog = world.open(base=tiny_base("tutor"))
    assert catalog.resolve("tutor").path == "base"
    assert catalog.preset("tutor").state == "failed"
    assert "resident base" in catalog.explain("tutor")["reasons"][0]
    assert world.open().resolve("tutor").label == "tutor@2"


def test_deleted_presets_stay_deleted(world, tutor):
    """A deleted preset is not there after a restart."""
    tutor.delete("tutor", edit=Edit())
    assert world.open().presets() == []
