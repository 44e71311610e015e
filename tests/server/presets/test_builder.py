"""Revisions whose editor did not wait."""

import threading

import pytest

from server.errors import UnavailableError
from server.presets.catalog import Edit
from tests.server.presets.tiny import preset

SOON = Edit(wait=False)


class Held:
    """Keeps back what is submitted to a builder until it is told to go on."""

    def __init__(self, catalog) -> None:
        self._builder = catalog._builder
        self._submitted: list = []
        catalog._builder.submit = lambda *work: self._submitted.append(work)

    def finish(self, index: int = 0) -> None:
        self._builder.finish(*self._submitted.pop(index))


@pytest.fixture
def held(catalog) -> Held:
    """A builder under control, of a catalog with tutor at revision 1."""
    catalog.create(preset(), edit=Edit())
    return Held(catalog)


def weight(value: float) -> dict:
    return {"sources": {"math": {"weight": value}}}


def test_the_old_revision_serves_meanwhile(catalog, held):
    """An edit that does not wait answers `building`; the old revision serves until it is built."""
    result = catalog.patch("tutor", weight(2), edit=SOON)
    assert result.changed
    assert (result.record.revision, result.record.state) == (2, "building")
    assert catalog.preset("tutor") == result.record
    assert catalog.resolve("tutor").label == "tutor@1"
    with pytest.raises(UnavailableError, match="tutor@2 is still building") as caught:
        catalog.resolve("tutor@2")
    assert caught.value.retry_after >= 1
    held.finish()
    assert catalog.preset("tutor").state == "ready"
    assert catalog.resolve("tutor").label == "tutor@2"


def test_a_first_revision_is_waited_for(catalog, held):
    """Until the first revision of a preset is built, requests are told to come back."""
    catalog.create(preset("other"), edit=SOON)
    with pytest.raises(UnavailableError, match="other@1 is still building"):
        catalog.resolve("other")
    assert "other" in [card.id for card in catalog.models()]
    held.finish()
    assert catalog.resolve("other").label == "other@1"


def test_conditions_count_what_is_building(catalog, held):
    """The revision that is building is the current one for the next edit."""
    catalog.patch("tutor", weight(2), edit=SOON)
    assert not catalog.patch("tutor", weight(2), edit=Edit(if_match=(2,))).changed
    assert catalog.patch("tutor", weight(3), edit=Edit(if_match=(2,))).record.revision == 3


def test_an_older_revision_never_replaces_a_newer(catalog, held):
    """A revision that is built after a newer one already serves is only marked as built."""
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=Edit())
    assert catalog.resolve("tutor").label == "tutor@3"
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@3"
    assert catalog.resolve("tutor@2").label == "tutor@2"
    assert catalog.preset("tutor").revision == 3


def test_each_serves_when_it_is_built(catalog, held):
    """Of two that are building the first serves while the second is not yet built."""
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=SOON)
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@2"
    assert catalog.preset("tutor").state == "building"
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@3"


def test_out_of_order(catalog, held):
    """Whatever the order in which they are built, the newest built one serves."""
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=SOON)
    held.finish(1)
    held.finish(0)
    assert catalog.resolve("tutor").label == "tutor@3"
    assert {record.state for record in catalog.revisions("tutor")} == {"ready"}


def test_going_back_is_not_possible(catalog, held):
    """While the newest is building, an older one that is built late does not replace a newer."""
    for value in (2, 3, 4):
        catalog.patch("tutor", weight(value), edit=SOON)
    held.finish(1)
    held.finish(0)
    assert catalog.resolve("tutor").label == "tutor@3"
    assert catalog.preset("tutor").state == "building"


def test_a_deleted_preset_stays_deleted(catalog, held):
    """A revision that is built after its preset was deleted is forgotten, also if it came back."""
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=SOON)
    catalog.delete("tutor", edit=Edit())
    held.finish()
    assert catalog.presets() == []
    catalog.create(preset(), edit=SOON)
    held.finish()
    with pytest.raises(UnavailableError, match="tutor@4"):
        catalog.resolve("tutor")
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@4"


def test_a_source_that_changes_meanwhile(catalog, held, world):
    """New content of a source makes a newer revision, which serves at once."""
    catalog.patch("tutor", weight(2), edit=SOON)
    world.adapter("math", 99)
    _, records = catalog.replace_source("math", "math", edit=SOON)
    assert [(record.label, record.state) for record in records] == [("tutor@3", "ready")]
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@3"


def test_a_restart_finishes_what_was_building(catalog, held, world):
    """A revision that was acknowledged as building serves after a restart."""
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=SOON)
    reopened = world.open()
    assert reopened.resolve("tutor").label == "tutor@3"
    assert {record.state for record in reopened.revisions("tutor")} == {"ready"}


def test_who_waits_is_answered_when_it_serves(catalog, held):
    """An edit to what is still building waits for it, unless it asks for an answer at once."""
    catalog.patch("tutor", weight(2), edit=SOON)
    assert catalog.patch("tutor", weight(2), edit=SOON).record.state == "building"
    for result in (
        catalog.patch("tutor", weight(2), edit=Edit()),
        catalog.rollback("tutor", 2, edit=Edit()),
    ):
        assert (result.changed, result.record.label) == (False, "tutor@2")
        assert result.record.state == "ready"
    assert catalog.resolve("tutor").label == "tutor@2"
    held.finish()
    assert catalog.resolve("tutor").label == "tutor@2"


def test_the_thread_does_the_rest(catalog):
    """Without anybody's help the background thread publishes soon; closing waits for it."""
    catalog.create(preset(), edit=SOON)
    for value in range(2, 6):
        catalog.patch("tutor", weight(float(value)), edit=SOON)
    catalog.close()
    assert catalog.resolve("tutor").label == "tutor@5"
    assert catalog.preset("tutor").state == "ready"


def test_what_is_building_is_ready_after_a_restart(catalog, held, world):
    """A revision that was cut off while it was building serves after a restart."""
    catalog.patch("tutor", weight(2), edit=SOON)
    again = world.open()
    assert again.preset("tutor").state == "ready"
    assert again.resolve("tutor").label == "tutor@2"


def test_a_failure_does_not_end_the_thread(catalog, monkeypatch, caplog):
    """What goes wrong with one revision is logged, and the next one is built."""
    catalog.create(preset(), edit=Edit())
    finish, failed = catalog._builder.finish, threading.Event()

    def fail_once(*work) -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("broken")
        finish(*work)

    monkeypatch.setattr(catalog._builder, "finish", fail_once)
    catalog.patch("tutor", weight(2), edit=SOON)
    catalog.patch("tutor", weight(3), edit=SOON)
    catalog.close()
    assert catalog.resolve("tutor").label == "tutor@3"
    assert "could not be published" in caplog.text
