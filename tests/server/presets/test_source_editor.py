"""Registering, replacing and deleting sources."""

import gc
import shutil
import weakref

import pytest
from sqlalchemy import text

from server.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    UnprocessableError,
)
from server.presets.catalog import Catalog, Edit
from server.presets.database import StoreError
from server.presets.served import Overrides
from server.presets.sources import NUM_RETIRED
from server.presets.store import PresetStore
from tests.server.presets.test_published import Listener
from tests.server.presets.tiny import OPEN_POLICY, preset, tiny_base, write_adapter


def test_a_source_is_registered(world, catalog):
    """A registered source can be called and used, and its card says what it is."""
    card = catalog.register_source("poet", str(world.adapter("poet", 5)))
    assert (card.name, card.path, card.state) == ("poet", world.sources / "poet", "ready")
    assert (card.reasons, card.presets, card.base_name) == ((), (), "tiny")
    assert card.num_bytes > 0
    assert catalog.source("poet") == card
    assert [card.name for card in catalog.sources()] == ["code", "math", "poet"]
    assert catalog.resolve("poet").path == "blend"
    catalog.create(preset(sources={"poet": {"weight": 1}}), edit=Edit())
    assert catalog.source("poet").presets == ("tutor",)


def test_a_source_survives_a_restart(world, catalog):
    """What was registered is there after a restart, with its content and times."""
    before = catalog.register_source("poet", str(world.adapter("poet", 5)))
    assert world.open().source("poet") == before


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("base", "the resident base"),
        ("tiny", "the resident base"),
        ("math", "a source"),
        ("tutor", "a preset"),
    ],
)
def test_one_namespace(world, catalog, name, owner):
    """A source cannot take a name that already means something."""
    catalog.create(preset(), edit=Edit())
    world.adapter("poet", 5)
    with pytest.raises(ConflictError, match=owner):
        catalog.register_source(name, "poet")


@pytest.mark.parametrize("name", ["", "a b", "a@1", "a:merge", "../a", "x" * 65])
def test_malformed_names(world, catalog, name):
    """A name that no model string could call is refused."""
    world.adapter("poet", 5)
    with pytest.raises(InvalidRequestError, match="is not a source name"):
        catalog.register_source(name, "poet")
    with pytest.raises(InvalidRequestError, match="is not a source name"):
        catalog.add_source(name, world.sources / "poet")


def test_clients_are_held_to_the_source_folders(world, catalog, tmp_path):
    """Over HTTP only source folders can be named; the operator can name any."""
    outside = write_adapter(tmp_path / "outside", 5)
    with pytest.raises(InvalidRequestError, match="--source-dir"):
        catalog.register_source("poet", str(outside))
    with pytest.raises(InvalidRequestError, match="--source-dir"):
        catalog.replace_source("math", str(outside), edit=Edit())
    assert catalog.add_source("poet", outside).path == outside
    closed = world.open(source_dirs=[])
    with pytest.raises(ForbiddenError, match="--source-dir"):
        closed.register_source("other", str(outside))


def test_an_unfit_adapter_is_not_registered(world, catalog):
    """A folder that is no adapter of this base is refused with the reason, under no name."""
    (world.sources / "empty").mkdir()
    for path in ("empty", "missing"):
        with pytest.raises(UnprocessableError, match="cannot be used") as caught:
            catalog.register_source("poet", path)
        assert caught.value.param == "path"
    with pytest.raises(NotFoundError):
        catalog.source("poet")


def test_new_content_revises_every_preset(world, catalog):
    """New content for a name makes a revision of every preset that uses it, and of no other."""
    catalog.create(preset("one"), edit=Edit())
    catalog.create(preset("two", sources={"code": {"weight": 1}}), edit=Edit())
    catalog.create(
        preset("both", sources={"code": {"weight": 1}, "math": {"weight": 2}}), edit=Edit()
    )
    old = {name: catalog.preset(name) for name in ("one", "two", "both")}
    world.adapter("math2", 99)
    card, records = catalog.replace_source(
        "math", "math2", edit=Edit(author="ada", message="retrained")
    )
    assert card.path == world.sources / "math2"
    assert [record.label for record in records] == ["both@2", "one@2"]
    for record in records:
        assert record.author == "ada"
        assert record.message == "source math has new content: retrained"
        assert record.document == old[record.name].document
        assert record.digest != old[record.name].digest
        assert catalog.resolve(record.name).digest == record.digest
    assert catalog.preset("two") == old["two"]


def test_new_content_in_the_same_folder(world, catalog):
    """A folder that was written again is taken by naming it again."""
    catalog.create(preset(), edit=Edit())
    before = catalog.source("math")
    world.adapter("math", 99)
    card, records = catalog.replace_source("math", "math", edit=Edit())
    assert card.digest != before.digest
    assert card.created_at == before.created_at
    assert card.updated_at > before.updated_at
    assert [record.message for record in records] == ["source math has new content"]


def test_the_same_content_changes_nothing(world, catalog):
    """Naming the same content again makes no revision, whichever folder it is in."""
    catalog.create(preset(), edit=Edit())
    before = catalog.source("math")
    card, records = catalog.replace_source("math", "math", edit=Edit())
    assert (card, records) == (catalog.source("math"), [])
    assert card.updated_at == before.updated_at
    shutil.copytree(world.sources / "math", world.sources / "copy")
    card, records = catalog.replace_source("math", "copy", edit=Edit())
    assert (card.path, card.digest, records) == (world.sources / "copy", before.digest, [])
    assert catalog.preset("tutor").revision == 1
    assert world.open().source("math").path == world.sources / "copy"


def test_what_is_not_registered_is_not_replaced(world, catalog):
    """PUT and DELETE of a source that does not exist are not found."""
    with pytest.raises(NotFoundError, match="no source 'nope'"):
        catalog.replace_source("nope", "math", edit=Edit())
    with pytest.raises(NotFoundError, match="no source 'nope'"):
        catalog.delete_source("nope")


def break_plans(catalog, monkeypatch, name: str) -> None:
    """Make one preset impossible to plan."""
    plan_document = catalog._planner.plan_document

    def plan(document, sources):
        if document.name == name:
            raise UnprocessableError("cannot be built: it is broken")
        return plan_document(document, sources)

    monkeypatch.setattr(catalog._planner, "plan_document", plan)


def test_all_or_none(world, catalog, monkeypatch):
    """If one preset cannot be built from the new content, nothing changes for any."""
    for name in ("one", "two", "three"):
        catalog.create(preset(name), edit=Edit())
    before = catalog.presets(), catalog.sources(), catalog.resolve("one")
    break_plans(catalog, monkeypatch, "two")
    world.adapter("math2", 99)
    with pytest.raises(UnprocessableError, match="preset 'two' cannot be built: it is broken"):
        catalog.replace_source("math", "math2", edit=Edit())
    assert (catalog.presets(), catalog.sources(), catalog.resolve("one")) == before
    monkeypatch.undo()
    assert [record.label for record in world.open().presets()] == ["one@1", "three@1", "two@1"]


def test_a_failed_commit_changes_nothing(world, catalog):
    """If the database refuses one of the revisions, neither source nor presets change."""
    for name in ("one", "two"):
        catalog.create(preset(name), edit=Edit())
    before = catalog.presets(), catalog.sources()
    with world.store._engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE INSERT ON revisions WHEN new.preset = 'two' BEGIN "
                "SELECT RAISE(ABORT, 'disk is full'); END"
            )
        )
    world.adapter("math2", 99)
    with pytest.raises(StoreError, match="nothing changed"):
        catalog.replace_source("math", "math2", edit=Edit())
    assert (catalog.presets(), catalog.sources()) == before
    assert [stored.record.label for stored in world.store.heads()] == ["one@1", "two@1"]
    assert catalog.resolve("one").label == "one@1"


def test_old_revisions_mean_the_old_content(world, catalog):
    """After new content an old revision still has the weights that it had."""
    catalog.create(preset(), edit=Edit())
    old = catalog.resolve("tutor")
    world.adapter("math", 99)
    catalog.replace_source("math", "math", edit=Edit())
    assert catalog.resolve("tutor@1").digest == old.digest
    assert catalog.resolve("tutor@1").members[0].weights.adapters == old.members[0].weights.adapters
    assert catalog.resolve("tutor").digest != old.digest


def test_a_rollback_takes_the_present_content(world, catalog):
    """A rollback brings a document back; the names in it mean what they mean now."""
    catalog.create(preset(), edit=Edit())
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    world.adapter("math", 99)
    catalog.replace_source("math", "math", edit=Edit())
    record = catalog.rollback("tutor", 1, edit=Edit()).record
    assert (record.label, record.document) == ("tutor@4", preset())
    assert record.digest not in {catalog.preset("tutor", number).digest for number in (1, 2, 3)}


def test_a_source_in_use_is_not_deleted(catalog):
    """Deleting a source that presets use is a conflict that names them."""
    catalog.create(preset("one"), edit=Edit())
    catalog.create(preset("two"), edit=Edit())
    with pytest.raises(ConflictError, match="in use by one, two"):
        catalog.delete_source("math")
    catalog.delete_source("code")
    assert [card.name for card in catalog.sources()] == ["math"]


def test_a_deleted_source_leaves_old_revisions(world, catalog):
    """Old revisions that used a source can be called after it is deleted and after a restart."""
    catalog.create(preset(), edit=Edit())
    old = catalog.resolve("tutor").digest
    catalog.replace("tutor", preset(sources={"code": {"weight": 1}}), edit=Edit())
    catalog.delete_source("math")
    for opened in (catalog, world.open()):
        assert opened.resolve("tutor@1").digest == old
        with pytest.raises(UnprocessableError, match=r"sources\.math: is not a registered"):
            opened.rollback("tutor", 1, edit=Edit())
        with pytest.raises(NotFoundError):
            opened.source("math")


def test_the_operators_source_replaces(world, catalog, tmp_path):
    """A source that is given at start-up replaces other content that its name had."""
    catalog.create(preset(), edit=Edit())
    catalog = world.open()
    card = catalog.add_source("math", write_adapter(tmp_path / "elsewhere", 99))
    assert card.path == tmp_path / "elsewhere"
    assert catalog.preset("tutor").label == "tutor@2"
    catalog = world.open()
    catalog.add_source("math", tmp_path / "elsewhere")
    assert catalog.preset("tutor").label == "tutor@2"


def test_one_broken_source_at_a_time(world, catalog):
    """A preset that two broken sources failed comes back when both are replaced, one by one."""
    fields = {"math": {"weight": 1}, "code": {"weight": 2}}
    catalog.create(preset(sources=fields), edit=Edit())
    shutil.rmtree(world.sources / "math")
    shutil.rmtree(world.sources / "code")
    catalog = world.open()
    assert catalog.preset("tutor").state == "failed"
    world.adapter("math", 0)
    world.adapter("code", 99)
    _, records = catalog.replace_source("math", "math", edit=Edit())
    assert records == []
    assert "'math'" not in catalog.explain("tutor")["reasons"][0]
    assert "sources.code" in catalog.explain("tutor")["reasons"][0]
    _, records = catalog.replace_source("code", "code", edit=Edit())
    assert [(record.label, record.state) for record in records] == [("tutor@2", "ready")]
    assert catalog.resolve("tutor").label == "tutor@2"


def test_the_same_content_heals(world, catalog):
    """A preset whose source was missing serves the same revision when the content is back."""
    catalog.create(preset(), edit=Edit())
    before = catalog.resolve("tutor")
    shutil.move(world.sources / "math", world.sources / "moved")
    catalog = world.open()
    assert catalog.source("math").state == "failed"
    _, records = catalog.replace_source("math", "moved", edit=Edit())
    assert records == []
    assert catalog.preset("tutor").state == "ready"
    assert catalog.resolve("tutor").label == "tutor@1"
    assert catalog.resolve("tutor").digest == before.digest


def test_memory_is_bounded(world, catalog):
    """However many old contents are called, only a few of them stay in memory."""
    catalog.create(preset(), edit=Edit())
    number = NUM_RETIRED + 4
    for seed in range(100, 100 + number):
        world.adapter("math", seed)
        catalog.replace_source("math", "math", edit=Edit())
    alive = []
    for revision in range(1, number + 2):
        served = catalog.resolve(f"tutor@{revision}", Overrides(weights={"math": revision}))
        assert served.digest != catalog.resolve(f"tutor@{revision}").digest
        (adapter,) = served.members[0].weights.adapters
        alive.append(weakref.ref(next(iter(adapter.factors.values())).a))
    del served, adapter
    gc.collect()
    assert [held() is not None for held in alive] == [False] * 4 + [True] * (NUM_RETIRED + 1)


def test_refused_contents_do_not_pile_up(world, catalog, monkeypatch):
    """Contents that are read and then refused leave the memory again."""
    catalog.create(preset(), edit=Edit())
    break_plans(catalog, monkeypatch, "tutor")
    for seed in range(100, 100 + 2 * NUM_RETIRED):
        world.adapter("math2", seed)
        with pytest.raises(UnprocessableError):
            catalog.replace_source("math", "math2", edit=Edit())
    assert len(catalog._registry._held) == 2 + NUM_RETIRED


def test_contents_that_nothing_names_are_deleted(world, catalog):
    """A content is kept on disk while a kept revision or a source names it, and no longer."""

    def kept() -> set[str]:
        return {f"sha256:{entry.name}" for entry in world.store.contents_folder.iterdir()}

    math, code = (catalog.source(name).digest for name in ("math", "code"))
    assert kept() == {math, code}
    catalog.create(preset(), edit=Edit())
    world.adapter("math", 99)
    catalog.replace_source("math", "math", edit=Edit())
    assert kept() == {math, code, catalog.source("math").digest}
    catalog.delete("tutor", edit=Edit())
    catalog.delete_source("code")
    assert kept() == {catalog.source("math").digest}


def test_content_that_cannot_be_kept_is_not_taken(world, catalog):
    """If the copy of a new content cannot be made, nothing changes."""
    catalog.create(preset(), edit=Edit())
    before = catalog.presets(), catalog.sources()
    shutil.rmtree(world.store.contents_folder)
    world.store.contents_folder.touch()
    world.adapter("math2", 99)
    with pytest.raises(StoreError, match="could not be kept"):
        catalog.replace_source("math", "math2", edit=Edit())
    with pytest.raises(StoreError, match="could not be kept"):
        catalog.register_source("poet", "math2")
    assert (catalog.presets(), catalog.sources()) == before


def test_a_database_in_memory_keeps_contents_in_memory(world):
    """Without a file for the database old revisions can be called all the same."""
    store = PresetStore("sqlite://")
    catalog = Catalog(store, tiny_base(), policy=OPEN_POLICY, source_dirs=[world.sources])
    catalog.add_source("math", world.adapter("math", 0))
    old = catalog.create(preset(), edit=Edit()).digest
    for seed in range(100, 103 + NUM_RETIRED):
        world.adapter("math", seed)
        catalog.replace_source("math", "math", edit=Edit())
    assert catalog.resolve("tutor@1").digest == old
    catalog.close()
    store.close()


def test_another_record_of_the_base_is_shown(world, catalog):
    """A folder that names another base now, with the same tensors, changes the card only."""
    catalog.create(preset(), edit=Edit())
    config = world.sources / "math" / "adapter_config.json"
    config.write_text(config.read_text().replace('"tiny"', '"huge"'))
    card, records = catalog.replace_source("math", "math", edit=Edit())
    assert (card.base_name, records) == ("huge", [])
    assert world.open().source("math") == card
    same, _ = catalog.replace_source("math", "math", edit=Edit())
    assert same.updated_at == card.updated_at


def test_a_source_is_compiled_once(catalog):
    """Calling a source by its name compiles nothing, however much else is called between."""
    first = catalog.resolve("math").members[0].weights
    catalog._planner.forget(catalog.source("math").digest)
    assert catalog.resolve("math").members[0].weights is first


def test_memory_is_shared(world, catalog):
    """Two names of the same content hold one adapter in memory."""
    shutil.copytree(world.sources / "math", world.sources / "copy")
    catalog.register_source("copy", "copy")
    first, second = (catalog.resolve(name).members[0].weights for name in ("math", "copy"))
    assert first.adapters[0] is second.adapters[0]
    assert first.digest == second.digest


def test_revisions_by_new_content_are_observed(world):
    """A revision that new content makes is observed like an edit, under the operation source."""
    listener = Listener()
    catalog = world.open_with_sources(observer=listener)
    catalog.create(preset(), edit=Edit())
    world.adapter("math", 99)
    catalog.replace_source("math", "math", edit=Edit())
    phases = frozenset({"plan", "commit", "publish"})
    assert listener.edits[-1] == ("tutor", "source", "changed", phases)


def test_base_mismatch_is_the_operators_choice(world, catalog):
    """A source of another base is refused, unless the server allows it."""
    write_adapter(world.sources / "alien", 5, base_digest=tiny_base(character="f").digest)
    with pytest.raises(UnprocessableError, match="another base"):
        catalog.register_source("alien", "alien")
    allowing = world.open(allow_base_mismatch=True)
    assert "another base" in allowing.register_source("alien", "alien").warnings[0]
