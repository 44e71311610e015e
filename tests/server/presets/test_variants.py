"""Presets whose weights are built: before they serve, once for all, and within a budget."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from server.errors import (
    ConflictError,
    ForbiddenError,
    PreconditionFailedError,
    UnavailableError,
    UnprocessableError,
)
from server.presets import failures as failures_module
from server.presets.builder import INTERNAL_ERROR
from server.presets.catalog import Catalog, Edit
from server.presets.policy import Policy
from server.presets.record import now
from server.presets.served import Overrides
from server.presets.workshop import BuildError
from tests.server.presets.forge import KV_BYTES, TIES, WHOLE, VariantWorld
from tests.server.presets.tiny import preset

SOON = Edit(wait=False)
INLINE = Policy(overrides="weights", inline_recipes="variant", serve_sources=True)
NAN = {"model__norm__weight": torch.full((4,), float("nan"))}


@pytest.fixture
def world(tmp_path: Path):
    world = VariantWorld(tmp_path)
    yield world
    world.forge.gate.set()
    world.close()


@pytest.fixture
def catalog(world) -> Catalog:
    """An open catalog with the adapters math and code and the checkpoint ft."""
    return world.open_with_sources()


def ties(name: str = "tutor", weight: float = 0.5, **fields):
    return preset(name, **{**TIES, "sources": {"ft": {"weight": weight, "density": 0.5}}, **fields})


def density(value: float) -> dict:
    return {"sources": {"ft": {"density": value}}}


def in_background(work, *arguments, **options):
    """Run on another thread; a future."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work, *arguments, **options)
    executor.shutdown(wait=False)
    return future


# Serving


def test_a_variant_serves_what_the_recipe_says(world, catalog):
    """A recipe of a checkpoint is served by weights of its own, and says so."""
    record = catalog.create(
        preset(method="linear", sources={"ft": {"weight": 1}, "base": {"weight": 3}}), edit=Edit()
    )
    assert (record.path, record.state) == ("variant", "ready")
    served = catalog.resolve("tutor")
    assert (served.path, served.digest, served.revision) == ("variant", record.digest, 1)
    own, base = catalog._snapshot.sources["ft"].content, world.resident
    for name, tensor in served.members[0].weights.tensors.items():
        expected = 0.25 * own.tensor(name) + 0.75 * base.tensor(name)
        torch.testing.assert_close(tensor, expected)


def test_a_checkpoint_is_called_by_its_name(world, catalog):
    """A checkpoint source alone is a model; it is built when it is first called."""
    assert world.forge.num_builds == 0
    served = catalog.resolve("ft")
    assert (served.path, served.preset) == ("variant", None)
    content = catalog._snapshot.sources["ft"].content
    for name, tensor in served.members[0].weights.tensors.items():
        assert torch.equal(tensor, content.tensor(name))
    assert catalog.resolve("ft").members[0].weights is served.members[0].weights


def test_equal_digests_are_one_variant(world, catalog):
    """Presets that mean the same weights share them, and a description changes none."""
    catalog.create(ties("one"), edit=Edit())
    catalog.create(ties("two", mode="merge", defaults={"temperature": 0}), edit=Edit())
    catalog.patch("one", {"description": "x"}, edit=Edit())
    assert world.forge.num_builds == 1
    assert catalog.resolve("one").members[0].weights is catalog.resolve("two").members[0].weights


# Edits


def test_an_edit_is_answered_when_it_serves(world, catalog):
    """Until the new weights are built the old ones serve; then the edit is answered."""
    catalog.create(ties(), edit=Edit())
    old = catalog.resolve("tutor")
    world.forge.gate.clear()
    edit = in_background(catalog.patch, "tutor", density(0.9), edit=Edit())
    world.forge.wait_for_start()
    world.forge.wait_for_start()
    assert catalog.resolve("tutor").members[0].weights is old.members[0].weights
    assert not edit.done()
    world.forge.gate.set()
    record = edit.result(20).record
    assert (record.revision, record.state) == (2, "ready")
    assert catalog.resolve("tutor").digest == record.digest != old.digest


def test_others_are_edited_and_read_meanwhile(world, catalog):
    """While one preset is built, others are edited, read and called."""
    world.forge.gate.clear()
    edit = in_background(catalog.create, ties(), edit=Edit())
    world.forge.wait_for_start()
    catalog.create(preset("other"), edit=Edit())
    assert catalog.patch("other", {"description": "x"}, edit=Edit()).record.revision == 2
    assert catalog.resolve("other").path == "blend"
    assert [record.name for record in catalog.presets()] == ["other"]
    assert not edit.done()
    world.forge.gate.set()
    assert edit.result(20).revision == 1


def test_edits_of_one_preset_take_turns(world, catalog):
    """Edits at the same time are applied one on the other: none is lost, none is built in vain."""
    catalog.create(ties(), edit=Edit())
    patches = [{"description": "x"}, density(0.7), {"sources": {"ft": {"weight": 2.0}}}]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda patch: catalog.patch("tutor", patch, edit=Edit()), patches))
    record = catalog.preset("tutor")
    assert record.revision == 4
    assert record.document.description == "x"
    assert record.document.sources == {"ft": {"weight": 2.0, "density": 0.7}}
    assert world.forge.num_builds == 3


def test_an_edit_that_is_overtaken_begins_again(world, catalog):
    """A head that moved during a build is not overwritten: the edit is applied to what it is now,
    and its condition is held against that.
    """
    catalog.create(ties(), edit=Edit())
    world.forge.wait_for_start()
    world.forge.gate.clear()
    edit = in_background(catalog.patch, "tutor", density(0.7), edit=Edit())
    strict = in_background(catalog.patch, "tutor", density(0.8), edit=Edit(if_match=(1,)))
    world.forge.wait_for_start()
    # An edit that is not waited for does not wait for those that are.
    quick = catalog.patch("tutor", {"description": "x"}, edit=SOON).record
    assert quick.revision == 2
    world.forge.gate.set()
    revised = edit.result(20).record
    assert revised.document.description == "x"
    assert revised.document.sources["ft"]["density"] == 0.7
    with pytest.raises(PreconditionFailedError):
        strict.result(20)


def test_overtaken_again_and_again(world, catalog, monkeypatch):
    """An edit that others keep overtaking makes them wait in the end."""
    catalog.create(ties(), edit=Edit())
    holding, calls, editor = world.variants.holding, [], threading.current_thread()

    def overtaken(plans, *rest):
        if threading.current_thread() is not editor:  # what overtakes is built by another one
            return holding(plans, *rest)
        calls.append(plans)
        if len(calls) < 20 and not catalog._published.lock._is_owned():
            catalog.patch("tutor", {"description": f"{len(calls)}"}, edit=SOON)
        return holding(plans, *rest)

    monkeypatch.setattr(catalog._presets._variants, "holding", overtaken)
    record = catalog.patch("tutor", density(0.7), edit=Edit()).record
    assert record.document.sources["ft"]["density"] == 0.7
    assert len(calls) < 20


def test_a_failed_build_changes_nothing(world, catalog):
    """NaN in a source is found when it is built: 422 with the tensor, and no revision is made."""
    catalog.create(ties(), edit=Edit())
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    before = catalog.preset("tutor")
    served = catalog.resolve("tutor")
    patch = {"sources": {"bad": {"weight": 1, "density": 1}}}
    for _ in range(2):
        with pytest.raises(UnprocessableError, match=r"model\.norm\.weight"):
            catalog.patch("tutor", patch, edit=Edit())
    gc.collect()
    assert len(world.forge.begun) == 0  # nothing of a failed build stays in memory
    assert catalog.preset("tutor") == before
    assert catalog.resolve("tutor").members[0].weights is served.members[0].weights
    assert [record.revision for record in catalog.revisions("tutor")] == [1]


def test_no_memory(world, catalog):
    """Memory that is not there is a reason, not a crash."""
    world.forge.error = MemoryError()
    with pytest.raises(UnprocessableError, match="not enough memory"):
        catalog.create(ties(), edit=Edit())
    world.forge.error = None
    assert catalog.create(ties(), edit=Edit()).state == "ready"


def test_our_own_mistakes_are_no_refusals(world, catalog, caplog):
    """What nobody expected is not blamed on the recipe, is in the log, and ends no thread."""
    world.forge.error = ZeroDivisionError("broken")
    with pytest.raises(ZeroDivisionError):
        catalog.create(ties(), edit=Edit())
    assert "could not be built" in caplog.text
    world.forge.error = None
    assert catalog.create(ties(), edit=Edit()).state == "ready"


def test_a_dry_run_builds_nothing(world, catalog):
    """Validation plans, and checks the budget, without building."""
    record, explanation = catalog.validate(ties(), edit=Edit())
    assert (record.path, explanation["path"]) == ("variant", "variant")
    assert explanation["reason"]
    assert world.forge.num_builds == 0


# Not waiting


def test_an_edit_that_is_not_waited_for(world, catalog):
    """`respond-async` is answered as building; the old revision serves until the new is built."""
    catalog.create(ties(), edit=Edit())
    world.forge.gate.clear()
    record = catalog.patch("tutor", density(0.9), edit=SOON).record
    assert (record.revision, record.state) == (2, "building")
    assert catalog.resolve("tutor").revision == 1
    world.forge.gate.set()
    wait_for(lambda: catalog.preset("tutor").state == "ready")
    assert catalog.resolve("tutor").revision == 2


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def half_failed(world, catalog) -> Catalog:
    """A catalog whose tutor@2 could not be built, which nobody waited for."""
    catalog.create(ties(), edit=Edit())
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    patch = {"sources": {"bad": {"weight": 1, "density": 1}}}
    assert catalog.patch("tutor", patch, edit=SOON).record.state == "building"
    wait_for(lambda: catalog.preset("tutor").state == "failed")
    return catalog


def test_a_background_build_that_fails(half_failed):
    """The newest revision has failed with its reasons; the old one goes on serving."""
    record = half_failed.preset("tutor")
    assert (record.revision, record.state) == (2, "failed")
    assert "model.norm.weight" in record.reasons[0]
    assert half_failed.resolve("tutor").revision == 1
    with pytest.raises(UnprocessableError, match=r"model\.norm\.weight"):
        half_failed.resolve("tutor@2")
    assert half_failed.explain("tutor")["reasons"] == list(record.reasons)


def test_it_has_failed_after_a_restart_too(world, half_failed):
    """What had failed is not tried again by a restart, and the old one serves as before."""
    again = world.open()
    assert again.preset("tutor") == half_failed.preset("tutor")
    assert again.resolve("tutor").revision == 1


def test_the_next_edit_mends_it(world, half_failed):
    """An edit of a failed revision is an edit like any other."""
    record = half_failed.patch("tutor", {"sources": {"bad": None}}, edit=Edit()).record
    assert (record.revision, record.state) == (3, "ready")
    assert half_failed.resolve("tutor").revision == 3
    assert world.open().preset("tutor").state == "cold"


def cut_off(world, catalog, patch: dict, **first: object) -> None:
    """Stop the server while tutor@2, which nobody waited for, is being built."""
    catalog.create(ties(**first), edit=Edit())
    world.forge.gate.clear()
    catalog.patch("tutor", patch, edit=SOON)
    closing = in_background(world.close)
    wait_for(world.variants._closing.is_set)
    world.forge.gate.set()
    closing.result(20)


def test_what_was_building_is_built_after_a_restart(world, catalog):
    """A revision that was cut off is built after a restart; the old one serves until then."""
    cut_off(world, catalog, density(0.9))
    again = world.open(held=True)
    assert (again.preset("tutor").revision, again.preset("tutor").state) == (2, "building")
    with pytest.raises(UnavailableError, match="tutor@2 is still building"):
        again.resolve("tutor@2")
    asked = again.begin("tutor")
    world.forge.gate.set()
    assert asked.result(20).revision == 1
    wait_for(lambda: again.preset("tutor").state == "ready")
    assert again.resolve("tutor").revision == 2
    assert world.open().preset("tutor").state == "cold"  # as any that was built


def test_what_fails_after_a_restart_leaves_the_old_one(world, catalog):
    """A revision that was cut off and cannot be built has failed; the old one serves for good."""
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    cut_off(world, catalog, {"sources": {"bad": {"weight": 1, "density": 1}}})
    again = world.open()
    wait_for(lambda: again.preset("tutor").state == "failed")
    assert again.resolve("tutor").revision == 1
    assert "model.norm.weight" in again.preset("tutor").reasons[0]
    assert world.open().preset("tutor").state == "failed"


def test_what_can_no_longer_be_planned_leaves_the_old_one(world, catalog):
    """A revision that was cut off, and whose source is gone, does not stop the old one; it is
    built when the source is there again.
    """
    catalog.add_source("other", world.checkpoint("other", 2))
    cut_off(world, catalog, {"sources": {"other": {"weight": 1, "density": 1}}})
    (world.sources / "other").rename(world.sources / "moved")
    again = world.open()
    assert again.preset("tutor").state == "failed"
    assert again.resolve("tutor").revision == 1
    (world.sources / "moved").rename(world.sources / "other")
    healed = world.open()
    wait_for(lambda: healed.preset("tutor").state == "ready")
    assert healed.resolve("tutor").revision == 2


def test_the_last_one_built_serves_after_a_restart(world, catalog):
    """Of several that nobody waited for, the newest that was built serves after a restart; one
    that was overtaken is built when it is called.
    """
    catalog.create(ties(), edit=Edit())
    catalog.patch("tutor", density(0.7), edit=SOON)
    wait_for(lambda: catalog.preset("tutor").state == "ready")
    world.forge.gate.clear()
    catalog.patch("tutor", density(0.8), edit=SOON)
    catalog.patch("tutor", density(0.9), edit=SOON)
    closing = in_background(world.close)
    wait_for(world.variants._closing.is_set)
    world.forge.gate.set()
    closing.result(20)
    again = world.open()
    wait_for(lambda: again.preset("tutor").state == "ready")
    assert again.resolve("tutor").revision == 4
    assert [record.revision for record in again.revisions("tutor")] == [4, 3, 2, 1]
    assert again.preset("tutor", 3).state == "cold"
    assert again.resolve("tutor@3").revision == 3


def test_our_own_mistakes_in_the_background(world, catalog, caplog):
    """What nobody expected fails a revision too: it is not building for ever."""
    catalog.create(ties(), edit=Edit())
    world.forge.error = ZeroDivisionError("broken")
    catalog.patch("tutor", density(0.9), edit=SOON)
    wait_for(lambda: catalog.preset("tutor").state != "building")
    record = catalog.preset("tutor")
    assert (record.state, record.reasons) == ("failed", (INTERNAL_ERROR,))
    assert "tutor@2 cannot be built" in caplog.text
    assert catalog.resolve("tutor").revision == 1


def test_a_failure_that_cannot_be_stored(world, catalog, monkeypatch, caplog):
    """A revision has failed also if the database does not take it."""

    def broken(writer, record) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("server.presets.store_writer.StoreWriter.mark_revision", broken)
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    sources = {"bad": {"weight": 1, "density": 1}}
    catalog.create(ties(sources=sources), edit=SOON)
    wait_for(lambda: catalog.preset("tutor").state != "building")
    assert catalog.preset("tutor").state == "failed"
    assert "model.norm.weight" in catalog.preset("tutor").reasons[0]
    assert "disk full" in caplog.text


# Cold


def test_after_a_restart_variants_are_cold(world, catalog):
    """At the start nothing is built; the first request builds, and the next one finds it."""
    catalog.create(ties(), edit=Edit())
    before = world.forge.num_builds
    again = world.open()
    assert again.preset("tutor").state == "cold"
    assert world.forge.num_builds == before
    first = again.resolve("tutor")
    assert again.preset("tutor").state == "ready"
    assert again.resolve("tutor").members[0].weights is first.members[0].weights
    assert world.forge.num_builds == before + 1


def test_pinned_ones_are_built_first(world, catalog):
    """Pinned presets are built before the server is ready; one that cannot be does not stop it."""
    catalog.create(ties(pinned=True), edit=Edit())
    catalog.create(ties("other", 0.25), edit=Edit())
    again = world.open()
    again.build_pinned()
    assert again.preset("tutor").state == "ready"
    assert again.preset("other").state == "cold"
    tiny = world.open(budget=10)
    tiny.build_pinned()
    assert tiny.preset("tutor").state == "cold"


def test_a_request_waits_only_so_long(world, catalog):
    """Who has waited long enough is told to come back; the build goes on, once for all."""
    catalog.create(ties(), edit=Edit())
    again = world.open(patience=0.05)
    world.forge.gate.clear()
    for _ in range(3):
        with pytest.raises(UnavailableError, match="being built") as caught:
            again.resolve("tutor")
        assert caught.value.retry_after >= 1
        assert again.preset("tutor").state == "building"
    before = world.forge.num_builds
    world.forge.gate.set()
    wait_for(lambda: again.preset("tutor").state == "ready")
    assert again.resolve("tutor").revision == 1
    assert world.forge.num_builds == before + 1


def test_all_who_wait_share_one_build(world, catalog):
    """Any number of requests for a cold variant are one build, and get the same weights."""
    catalog.create(ties(), edit=Edit())
    again = world.open()
    before = world.forge.num_builds
    world.forge.gate.clear()
    futures = [again.begin("tutor") for _ in range(10)]
    assert futures[3].cancel()
    world.forge.gate.set()
    members = {id(f.result(20).members[0].weights) for i, f in enumerate(futures) if i != 3}
    assert len(members) == 1
    assert world.forge.num_builds == before + 1


def test_a_cold_one_that_cannot_be_built(world, catalog, monkeypatch):
    """Its requests are refused with the reason, without a new build for each of them; later it is
    tried again.
    """
    catalog.create(ties(), edit=Edit())
    again = world.open()
    world.checkpoint("ft", 77)  # written again in place
    for _ in range(3):
        with pytest.raises(UnprocessableError, match="changed since"):
            again.resolve("tutor")
    assert again.preset("tutor").state == "failed"
    assert "changed since" in again.preset("tutor").reasons[0]
    starts = 0
    while world.forge.started.acquire(blocking=False):
        starts += 1
    assert starts == 2  # of the first revision, and one now
    monkeypatch.setattr(failures_module, "FAILURE_SECONDS", 0.0)
    assert (again.preset("tutor").state, again.preset("tutor").reasons) == ("cold", ())
    with pytest.raises(UnprocessableError):
        again.resolve("tutor")
    assert world.forge.started.acquire(blocking=False)


def test_refusals_do_not_grow(world, catalog):
    """Each request that a recent failure refuses gets an error of its own."""
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    with pytest.raises(UnprocessableError):
        catalog.resolve("bad")
    plan, errors = catalog._snapshot.sources["bad"].plan, []
    for _ in range(2):
        with pytest.raises(BuildError, match=r"model\.norm\.weight") as caught:
            world.variants.ask(plan)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[0].reasons == errors[1].reasons


def test_one_mistake_does_not_stop_the_start(world, catalog, caplog):
    """A pinned preset whose build goes wrong in a way that nobody expected is in the log."""
    catalog.create(ties(pinned=True), edit=Edit())
    again = world.open()
    world.forge.error = ZeroDivisionError("broken")
    again.build_pinned()
    assert "tutor@1 is pinned and was not built" in caplog.text
    lines = again.seed_presets([ties("other", 0.25, pinned=True), preset("third")], "x.yaml")
    assert lines == [
        f"preset 'other' of x.yaml is not created: {INTERNAL_ERROR}",
        "third@1 is created from x.yaml",
    ]


# The queue


@pytest.fixture
def queued(world, catalog):
    """A catalog that builds tutor, for which one request waits, until the gate is open."""
    for index in range(4):
        catalog.create(ties(f"p{index}", 0.1 * (index + 1)), edit=Edit())
    catalog.create(ties(), edit=Edit())
    again = world.open()
    while world.forge.started.acquire(blocking=False):
        pass
    world.forge.gate.clear()
    again.waiting = [again.begin("tutor")]
    world.forge.wait_for_start()
    return again


def test_requests_may_have_so_many_builds_waiting(world, queued, monkeypatch):
    """Beyond that they are told at once to come back; who joins a build, and edits, are not."""
    monkeypatch.setattr("server.presets.jobs.MAX_QUEUED", 2)
    waiting = [queued.begin("p0"), queued.begin("p1")]
    with pytest.raises(UnavailableError, match="2 other builds wait") as caught:
        queued.begin("p2")
    assert caught.value.code == "variant_cold"
    assert caught.value.retry_after >= 1
    waiting += [queued.begin("p0"), queued.begin("tutor")]
    edit = in_background(queued.create, ties("new", 0.9), edit=Edit())
    follow = in_background(queued.patch, "p2", density(0.8), edit=Edit())
    world.forge.gate.set()
    assert edit.result(20).state == "ready"
    assert follow.result(20).record.state == "ready"
    assert all(future.result(20).path == "variant" for future in waiting)
    assert queued.begin("p3").result(20).preset == "p3"


def test_nothing_is_built_for_nobody(world, queued):
    """A build whose requests have all given up is skipped; one that somebody still wants is not."""
    gone, others = queued.begin("p0"), [queued.begin("p1"), queued.begin("p1")]
    assert gone.cancel()
    assert others[0].cancel()
    before = world.forge.num_builds
    world.forge.gate.set()
    assert others[1].result(20).preset == "p1"
    assert world.forge.num_builds == before + 2
    assert queued.preset("p0").state == "cold"
    assert queued.resolve("p0").preset == "p0"


def test_who_ran_out_of_patience_wants_nothing(world, queued):
    """A request that waited long enough does not keep its build in the queue."""
    queued._caller.patience = 0.05
    with pytest.raises(UnavailableError, match="being built"):
        queued.resolve("p0")
    before = world.forge.num_builds
    world.forge.gate.set()
    wait_for(lambda: queued.preset("p0").state == "cold")
    assert world.forge.num_builds == before + 1


# The budget


def test_the_budget_holds(world):
    """What was used longest ago is evicted, is cold, and comes back when it is called."""
    catalog = world.open_with_sources(budget=2 * WHOLE)
    for index, name in enumerate("abc"):
        catalog.create(ties(name, 0.1 * (index + 1)), edit=Edit())
    states = {record.name: record.state for record in catalog.presets()}
    assert states == {"a": "cold", "b": "ready", "c": "ready"}
    assert world.variants.num_bytes <= 2 * WHOLE
    assert catalog.resolve("a").preset == "a"
    assert catalog.preset("b").state == "cold"


def test_caches_are_in_the_budget(world):
    """What builds keep takes only what the variants leave of the budget."""
    catalog = world.open_with_sources()
    catalog.create(ties(), edit=Edit())
    assert world.cache.num_bytes > 1000
    world.open(budget=WHOLE + 1000).resolve("tutor")
    assert world.variants.num_bytes == WHOLE
    assert world.cache.num_bytes <= 1000


def test_requests_keep_what_they_have(world):
    """Eviction does not touch the weights of a request that is under way."""
    catalog = world.open_with_sources(budget=WHOLE)
    catalog.create(ties("a"), edit=Edit())
    served = catalog.resolve("a")
    before = {name: tensor.clone() for name, tensor in served.members[0].weights.tensors.items()}
    catalog.create(ties("b", 0.25), edit=Edit())
    assert catalog.preset("a").state == "cold"
    tensors = served.members[0].weights.tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


def test_a_refused_edit_evicts_nothing(world):
    """An edit whose build fails, and one that is refused after its build, take nobody's room."""
    catalog = world.open_with_sources(budget=2 * WHOLE)
    catalog.create(ties("a"), edit=Edit())
    catalog.create(ties("b", 0.25), edit=Edit())
    catalog.add_source("bad", world.checkpoint("bad", 2, **NAN))
    patch = {"sources": {"bad": {"weight": 1, "density": 1}}}
    with pytest.raises(UnprocessableError, match=r"model\.norm\.weight"):
        catalog.patch("a", patch, edit=Edit())
    with pytest.raises(UnprocessableError, match=r"model\.norm\.weight"):
        catalog.create(ties("c", sources=patch["sources"]), edit=Edit())
    with world.store.writing() as writer:  # as another process would
        writer.delete_preset("a", head=1, at=now())
    with pytest.raises(ConflictError):
        catalog.patch("a", density(0.9), edit=Edit())
    assert {record.name: record.state for record in catalog.presets()} == {
        "a": "ready",
        "b": "ready",
    }


def test_refused_content_evicts_nothing(world):
    """New content of a source that one of its presets refuses leaves the others in memory, whatever
    was built of it before.
    """
    catalog = world.open_with_sources(budget=4 * WHOLE)
    catalog.add_source("other", world.checkpoint("other", 5))
    catalog.create(ties("a"), edit=Edit())
    catalog.create(ties("b", 0.25), edit=Edit())
    twice = {"ft": {"weight": 2}}
    catalog.create(preset("c", method="task_arithmetic", sources=twice), edit=Edit())
    catalog.create(preset("d", method="linear", sources={"other": {"weight": 1}}), edit=Edit())
    kept = {name: catalog.resolve(name).members[0] for name in "abcd"}
    world.checkpoint("huge", 2, model__norm__weight=torch.full((4,), 3e38))
    number = world.forge.num_builds
    with pytest.raises(UnprocessableError, match="preset 'c'"):
        catalog.replace_source("ft", "huge", edit=Edit())
    assert world.forge.num_builds > number
    assert {name: catalog.resolve(name).members[0] for name in "abcd"} == kept
    assert world.variants.num_bytes == 4 * WHOLE


def test_a_build_waits_for_what_requests_run_on(world, monkeypatch):
    """Weights that went and still run count: a build waits for their end, so long; then the edit is
    told to come back, and what serves goes on.
    """
    monkeypatch.setattr("server.presets.admission.LEAVING_SECONDS", 0.05)
    catalog = world.open_with_sources(budget=2 * WHOLE)
    catalog.create(ties(), edit=Edit())
    running = [catalog.resolve("tutor")]
    catalog.patch("tutor", density(0.6), edit=Edit())
    running.append(catalog.resolve("tutor"))
    catalog.patch("tutor", density(0.7), edit=Edit())
    with pytest.raises(UnavailableError, match="requests still run on") as caught:
        catalog.patch("tutor", density(0.8), edit=Edit())
    assert (caught.value.code, caught.value.status) == ("variant_memory", 503)
    assert caught.value.retry_after >= 1
    assert (catalog.preset("tutor").revision, catalog.preset("tutor").state) == (3, "ready")
    catalog.patch("tutor", density(0.8), edit=SOON)
    wait_for(lambda: catalog.preset("tutor").state == "failed")
    assert "requests still run on" in catalog.preset("tutor").reasons[0]
    assert catalog.resolve("tutor").revision == 3
    monkeypatch.setattr("server.presets.admission.LEAVING_SECONDS", 20)
    edit = in_background(catalog.patch, "tutor", density(0.9), edit=Edit())
    wait_for(lambda: bool(world.variants._jobs))
    assert not edit.done()
    running.pop()
    assert edit.result(20).record.state == "ready"


def test_further_layers_are_in_the_budget(world):
    """The KV cache of a stack deeper than the base is counted, told, and given back."""
    layers = [{"sources": [{"model": "base", "layer_range": r}]} for r in ([0, 2], [0, 2])]
    stack = {"method": "passthrough", "sources": {"base": {}}, "slices": layers}
    stack["base_model"] = None
    catalog = world.open_with_sources(budget=2 * KV_BYTES)
    catalog.create(preset("deep", **stack), edit=Edit())
    explained = catalog.explain("deep")
    assert (explained["num_bytes"], explained["kv_bytes"]) == (0, 2 * KV_BYTES)
    assert world.variants.num_bytes == 2 * KV_BYTES
    layers.append(layers[0])
    for attempt in (catalog.validate, catalog.create):
        with pytest.raises(UnprocessableError, match="layers beyond the base's"):
            attempt(preset("deeper", **stack), edit=Edit())
    catalog.delete("deep", edit=Edit())
    assert world.variants.num_bytes == 0


def test_what_can_never_fit_is_refused(world):
    """A variant beyond the budget is refused with the numbers, waited for or not, dry run too."""
    catalog = world.open_with_sources(budget=WHOLE - 1)
    for attempt in (
        lambda: catalog.create(ties(), edit=Edit()),
        lambda: catalog.create(ties(), edit=SOON),
        lambda: catalog.validate(ties(), edit=Edit()),
        lambda: catalog.resolve("ft"),
    ):
        with pytest.raises(UnprocessableError, match="--variant-memory"):
            attempt()
    assert catalog.presets() == []


def test_pinned_ones_leave_less(world):
    """Pinned presets are never evicted, so what does not fit beside them is refused."""
    catalog = world.open_with_sources(budget=2 * WHOLE)
    catalog.create(ties("a", pinned=True), edit=Edit())
    catalog.create(ties("b", 0.25, pinned=True), edit=Edit())
    with pytest.raises(UnprocessableError, match="pinned presets"):
        catalog.create(ties("c", 0.125), edit=Edit())
    # An edit takes the place of what it edits, which serves meanwhile.
    assert catalog.patch("b", density(0.9), edit=Edit()).record.state == "ready"
    assert catalog.preset("a").state == "ready"
    catalog.patch("a", {"pinned": False}, edit=Edit())
    assert catalog.create(ties("c", 0.125), edit=Edit()).state == "ready"
    assert catalog.preset("a").state == "cold"


def test_an_edit_stays_where_both_do_not_fit(world):
    """An edit is not evicted for what it replaces: the next request finds it."""
    catalog = world.open_with_sources(budget=WHOLE + WHOLE // 2)
    catalog.create(ties(), edit=Edit())
    catalog.patch("tutor", density(0.9), edit=Edit())
    assert catalog.preset("tutor").state == "ready"
    assert world.variants.num_bytes == WHOLE


def test_a_dry_run_takes_the_place_of_what_it_edits(world):
    """A dry run of a pinned preset is refused by the rules of an edit, and only by those."""
    catalog = world.open_with_sources(budget=WHOLE)
    catalog.create(ties(pinned=True), edit=Edit())
    assert catalog.validate(ties(weight=0.25, pinned=True), edit=Edit())[0].revision == 2
    with pytest.raises(UnprocessableError, match="pinned presets"):
        catalog.validate(ties("other", 0.25), edit=Edit())


@pytest.mark.parametrize("edit", [Edit(), SOON])
def test_pinned_ones_that_share_their_weights(world, edit):
    """Weights that another pinned preset keeps do not make room for an edit's."""
    catalog = world.open_with_sources(budget=WHOLE)
    catalog.create(ties("a", pinned=True), edit=Edit())
    catalog.create(ties("b", pinned=True), edit=Edit())
    with pytest.raises(UnprocessableError, match="pinned presets"):
        catalog.patch("b", density(0.9), edit=edit)
    assert catalog.preset("b").revision == 1
    assert world.variants.num_bytes == WHOLE


def test_pinned_weights_of_another_are_no_room(world):
    """An edit of a preset that is not pinned does not take the place of the weights that another
    one pins, though both serve them: it could never be called.
    """
    catalog = world.open_with_sources(budget=WHOLE + WHOLE // 2)
    catalog.create(ties("a", pinned=True), edit=Edit())
    catalog.create(ties("b"), edit=Edit())
    for attempt in (
        lambda: catalog.replace("b", ties("b", 0.25), edit=Edit()),
        lambda: catalog.validate(ties("b", 0.25), edit=Edit()),
    ):
        with pytest.raises(UnprocessableError, match="of pinned presets"):
            attempt()
    assert catalog.preset("b").revision == 1


def test_pinned_presets_follow_a_source_together(world):
    """Those that all move to a source's new content need no room beside the old."""
    catalog = world.open_with_sources(budget=WHOLE)
    catalog.create(ties("a", pinned=True), edit=Edit())
    catalog.create(ties("b", pinned=True), edit=Edit())
    catalog.replace_source("ft", str(world.checkpoint("newer", 12)), edit=Edit())
    assert {(p.revision, p.state) for p in catalog.presets()} == {(2, "ready")}


def test_pinned_edits_at_the_same_time(world):
    """Of two that each fit, and do not fit together, one is refused."""
    catalog = world.open_with_sources(budget=WHOLE)
    world.forge.gate.clear()
    edits = [
        in_background(catalog.create, ties(name, weight, pinned=True), edit=Edit())
        for name, weight in (("a", 0.5), ("b", 0.25))
    ]
    wait_for(lambda: len(world.variants._jobs) == 2)
    world.forge.gate.set()
    refused = [error for edit in edits if (error := edit.exception(20)) is not None]
    assert [type(error) for error in refused] == [BuildError]
    assert len(catalog.presets()) == 1
    assert world.variants.num_bytes == WHOLE


def test_pinned_in_the_background(world):
    """Edits that nobody waits for are held against the budget when they serve."""
    catalog = world.open_with_sources(budget=WHOLE)
    world.forge.gate.clear()
    catalog.create(ties("a", pinned=True), edit=SOON)
    catalog.create(ties("b", 0.25, pinned=True), edit=SOON)
    world.forge.gate.set()
    wait_for(lambda: "building" not in {record.state for record in catalog.presets()})
    assert [record.state for record in catalog.presets()] == ["ready", "failed"]
    assert "pinned presets" in catalog.preset("b").reasons[0]


def test_a_smaller_budget_can_be_mended(world):
    """Pinned presets that fit no more can be unpinned one after the other."""
    catalog = world.open_with_sources()
    for index, name in enumerate("abc"):
        catalog.create(ties(name, 0.1 * (index + 1), pinned=True), edit=Edit())
    catalog = world.open(budget=WHOLE)
    for name in "ab":
        assert catalog.patch(name, {"pinned": False}, edit=Edit()).record.revision == 2


def test_replaced_weights_leave_the_memory(world, catalog):
    """After any number of edits there is one variant, unless a request still has another."""
    catalog.create(ties(), edit=Edit())
    kept = catalog.resolve("tutor")
    for index in range(20):
        catalog.patch("tutor", density(0.5 + index / 100), edit=Edit())
    gc.collect()
    assert len(world.forge.live) == 2
    del kept
    gc.collect()
    assert len(world.forge.live) == 1
    assert world.variants.num_bytes == WHOLE
    catalog.delete("tutor", edit=Edit())
    gc.collect()
    assert len(world.forge.live) == 0


def test_old_revisions_are_built_on_demand(world, catalog):
    """A kept revision is built when it is called, with the weights that it had."""
    catalog.create(ties(), edit=Edit())
    first = catalog.resolve("tutor").members[0].weights.tensors
    catalog.patch("tutor", density(0.9), edit=Edit())
    again = catalog.resolve("tutor@1")
    assert (again.revision, again.path) == (1, "variant")
    assert all(torch.equal(again.members[0].weights.tensors[name], first[name]) for name in first)
    states = {record.revision: record.state for record in catalog.revisions("tutor")}
    assert states == {1: "ready", 2: "ready"}


# Requests with weights of their own


def test_weights_of_a_request(world, catalog):
    """Other weights of a variant are built for a request only if inline variants are allowed."""
    catalog.create(ties(), edit=Edit())
    with pytest.raises(ForbiddenError, match="--inline-recipes is 'blend'"):
        catalog.resolve("tutor", Overrides(weights={"ft": 0.9}))
    same = catalog.resolve("tutor", Overrides(weights={"ft": 0.5}))
    assert same.members == catalog.resolve("tutor").members
    allowed = world.open(policy=INLINE)
    other = allowed.resolve("tutor", Overrides(weights={"ft": 0.9}))
    assert other.digest != allowed.resolve("tutor").digest
    assert other.path == "variant"


def test_recipes_of_a_request(world, catalog):
    """A recipe in a request that needs a variant is refused by the setting's name, or built."""
    overrides = Overrides(recipe=TIES)
    with pytest.raises(ForbiddenError, match="--inline-recipes") as caught:
        catalog.resolve("base", overrides)
    assert caught.value.param == "mergeserve.recipe"
    served = world.open(policy=INLINE).resolve("base", overrides)
    assert (served.preset, served.path) == (None, "variant")


# Sources


def test_new_content_is_built_before_it_is_taken(world, catalog):
    """Every preset that uses a source follows it, built before anything is switched."""
    catalog.create(ties("one"), edit=Edit())
    catalog.create(ties("two", 0.25), edit=Edit())
    old = {name: catalog.resolve(name).members[0].weights for name in ("one", "two")}
    world.checkpoint("ft2", 2)
    world.forge.wait_for_start()
    world.forge.wait_for_start()
    world.forge.gate.clear()
    replacing = in_background(catalog.replace_source, "ft", "ft2", edit=Edit())
    world.forge.wait_for_start()
    assert {name: catalog.resolve(name).members[0].weights for name in old} == old
    world.forge.gate.set()
    card, records = replacing.result(20)
    assert (card.kind, card.path.name) == ("checkpoint", "ft2")
    assert [record.label for record in records] == ["one@2", "two@2"]
    assert {record.state for record in catalog.presets()} == {"ready"}
    gc.collect()
    del old
    gc.collect()
    assert len(world.forge.live) == 2


def test_all_presets_or_none(world, catalog):
    """New content that one preset cannot be built from is refused for all, with each reason."""
    for index, name in enumerate(("one", "two")):
        catalog.create(ties(name, 0.5 + index), edit=Edit())
    before = catalog.presets(), catalog.source("ft")
    world.checkpoint("bad", 2, **NAN)
    with pytest.raises(UnprocessableError, match="nothing changed") as caught:
        catalog.replace_source("ft", "bad", edit=Edit())
    assert "preset 'one'" in caught.value.message
    assert "preset 'two'" in caught.value.message
    assert (catalog.presets(), catalog.source("ft")) == before


def test_an_edit_during_a_replacement_is_not_lost(world, catalog):
    """A preset that is edited while a source's new content is built gets both."""
    catalog.create(ties(), edit=Edit())
    world.checkpoint("ft2", 2)
    world.forge.wait_for_start()
    world.forge.gate.clear()
    replacing = in_background(catalog.replace_source, "ft", "ft2", edit=Edit())
    world.forge.wait_for_start()
    catalog.patch("tutor", {"description": "x"}, edit=SOON)
    world.forge.gate.set()
    card, records = replacing.result(20)
    assert [(record.revision, record.document.description) for record in records] == [(3, "x")]
    assert catalog.resolve("tutor").digest == records[0].digest
    assert card.digest == catalog.source("ft").digest


def test_old_content_serves_as_long_as_its_folder_does(world, catalog):
    """A checkpoint is not copied: a revision of an old one is called while its files are there."""
    catalog.create(ties(), edit=Edit())
    world.checkpoint("ft2", 2)
    catalog.replace_source("ft", "ft2", edit=Edit())
    assert catalog.resolve("tutor@1").revision == 1
    again = world.open()
    assert again.preset("tutor", 1).state == "cold"
    assert again.resolve("tutor@1").revision == 1
    world.checkpoint("ft", 99)
    changed = world.open()
    with pytest.raises(UnprocessableError, match="checkpoints are not copied"):
        changed.resolve("tutor@1")
    assert changed.resolve("tutor").revision == 2


def test_closing_gives_up_what_is_building(world, catalog):
    """Who waits for a build when the server stops is told so, and nobody hangs."""
    catalog.create(ties(), edit=Edit())
    again = world.open()
    world.forge.gate.clear()
    waiting = [again.begin("tutor"), again.begin("ft")]
    threading.Timer(0.1, world.forge.gate.set).start()
    again.close()
    assert all(future.done() for future in waiting)
    with pytest.raises(UnavailableError, match="shutting down"):
        waiting[1].result()
    with pytest.raises(UnavailableError, match="shutting down"):
        again.begin("ft")


def test_a_variant_that_is_used_is_packed(world, catalog, monkeypatch):
    """Behind the first requests a variant gets its faster kernels, once; others do not."""
    monkeypatch.setattr("server.presets.packer.DELAY", 0.01)
    catalog.create(ties(), edit=Edit())
    catalog.create(ties("other", 0.25), edit=Edit())
    variant = catalog.resolve("tutor").members[0].weights
    wait_for(lambda: variant.num_packed == 1)
    catalog.resolve("tutor")
    time.sleep(0.05)
    assert sorted(v.num_packed for v in world.forge.live) == [0, 1]


def test_what_packing_freed_is_given_back(world, catalog, monkeypatch):
    """Behind each packing, which lets go of the plain weights."""
    packed: list[int] = []
    monkeypatch.setattr("server.presets.packer.DELAY", 0.01)
    monkeypatch.setattr(
        "server.presets.packer.give_back",
        lambda: packed.append(sum(variant.num_packed for variant in world.forge.live)),
    )
    catalog.create(ties(), edit=Edit())
    catalog.resolve("tutor")
    wait_for(lambda: packed == [1])
