"""Edits of presets, through the catalog."""

import threading

import pytest
from sqlalchemy import text

from server.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PreconditionFailedError,
    UnprocessableError,
)
from server.presets.catalog import Edit
from server.presets.database import StoreError
from tests.server.presets.test_published import Listener
from tests.server.presets.tiny import digest, preset

MORE_MATH = {"sources": {"math": {"weight": 0.9}}}


def weight(value: object) -> dict:
    """A patch of the weight of math."""
    return {"sources": {"math": {"weight": value}}}


@pytest.fixture
def tutor(catalog):
    """A catalog with tutor at revision 1."""
    catalog.create(preset(), edit=Edit(author="ada", message="hello"))
    return catalog


def test_a_new_preset_is_at_revision_1(catalog):
    """Creating a preset makes revision 1, which serves."""
    record = catalog.create(preset(), edit=Edit(author="ada", message="hello"))
    assert (record.revision, record.state, record.path) == (1, "ready", "blend")
    assert (record.author, record.message) == ("ada", "hello")
    assert record.created_at == record.updated_at
    assert catalog.resolve("tutor").label == "tutor@1"
    assert catalog.resolve("tutor").digest == record.digest


def test_create_does_not_replace(tutor):
    """Creating a preset that exists is a conflict, and nothing changes."""
    with pytest.raises(ConflictError, match="exists already, at revision 1"):
        tutor.create(preset(description="other"), edit=Edit())
    assert tutor.preset("tutor").document == preset()


@pytest.mark.parametrize(
    ("name", "owner"),
    [("base", "the resident base"), ("tiny", "the resident base"), ("math", "a source")],
)
def test_one_namespace(catalog, name, owner):
    """A preset cannot take the name of the base or of a source, however it is created."""
    for create in (
        lambda: catalog.create(preset(name), edit=Edit()),
        lambda: catalog.replace(name, preset(name), edit=Edit()),
        lambda: catalog.validate(preset(name), edit=Edit()),
    ):
        with pytest.raises(ConflictError, match=owner):
            create()
    assert catalog.presets() == []


def test_an_edit_makes_the_next_revision(tutor):
    """A patch is a new revision, with its own author, message and time."""
    before = tutor.preset("tutor")
    result = tutor.patch("tutor", MORE_MATH, edit=Edit(author="bob", message="more"))
    assert (result.created, result.changed) == (False, True)
    record = result.record
    assert (record.revision, record.author, record.message) == (2, "bob", "more")
    assert record.created_at > before.created_at
    assert record.digest != before.digest
    assert tutor.preset("tutor") == record
    assert tutor.resolve("tutor").label == "tutor@2"


def test_put_creates_and_replaces(catalog):
    """PUT creates what does not exist, and replaces the whole document of what does."""
    result = catalog.replace("tutor", preset(description="x"), edit=Edit())
    assert (result.created, result.changed, result.record.revision) == (True, True, 1)
    result = catalog.replace("tutor", preset(), edit=Edit())
    assert (result.created, result.changed, result.record.revision) == (False, True, 2)
    assert result.record.document.description == ""
    with pytest.raises(InvalidRequestError, match="cannot be renamed"):
        catalog.replace("tutor", preset("other"), edit=Edit())


def test_current_content_makes_no_revision(tutor):
    """Content that is already current changes nothing, and keeps author and message."""
    for result in (
        tutor.replace("tutor", preset(), edit=Edit(author="bob")),
        tutor.replace("tutor", preset(sources={"math": {"weight": 0.5}}), edit=Edit()),
        tutor.patch("tutor", {}, edit=Edit()),
        tutor.patch("tutor", weight(0.5), edit=Edit(wait=False)),
        tutor.rollback("tutor", 1, edit=Edit()),
    ):
        assert (result.created, result.changed) == (False, False)
        assert (result.record.revision, result.record.author) == (1, "ada")
        assert result.record.state == "ready"
    assert len(tutor.revisions("tutor")) == 1


def test_what_does_not_change_weights_is_a_revision_too(tutor):
    """An edit of the description is a new revision with the same digest."""
    record = tutor.patch("tutor", {"description": "x"}, edit=Edit()).record
    assert record.revision == 2
    assert record.digest == tutor.preset("tutor", 1).digest


def test_what_does_not_exist_is_not_found(catalog):
    """Editing, deleting or rolling back what does not exist is a 404, whatever the condition."""
    for edit in (Edit(), Edit(if_match=(1,)), Edit(if_match_any=True)):
        for attempt in (
            lambda edit=edit: catalog.patch("tutor", MORE_MATH, edit=edit),
            lambda edit=edit: catalog.delete("tutor", edit=edit),
            lambda edit=edit: catalog.rollback("tutor", 1, edit=edit),
        ):
            with pytest.raises(NotFoundError, match="no preset 'tutor'"):
                attempt()
    with pytest.raises(NotFoundError):
        catalog.patch("no such name!", {}, edit=Edit())


def test_conditions_guard_every_edit(tutor):
    """An edit whose condition does not hold is refused, and nothing changes."""
    for edit in (Edit(if_match=(2,)), Edit(if_match=()), Edit(if_none_match_any=True)):
        for attempt in (
            lambda edit=edit: tutor.patch("tutor", MORE_MATH, edit=edit),
            lambda edit=edit: tutor.replace("tutor", preset(seed=1), edit=edit),
            lambda edit=edit: tutor.rollback("tutor", 1, edit=edit),
            lambda edit=edit: tutor.delete("tutor", edit=edit),
        ):
            with pytest.raises(PreconditionFailedError):
                attempt()
    with pytest.raises(PreconditionFailedError):
        tutor.replace("other", preset("other"), edit=Edit(if_match_any=True))
    assert [record.label for record in tutor.presets()] == ["tutor@1"]
    assert tutor.patch("tutor", MORE_MATH, edit=Edit(if_match=(1,))).record.revision == 2


def test_numbers_are_not_used_again(tutor, world):
    """After a deletion a preset of the name goes on counting, also after a restart."""
    tutor.patch("tutor", MORE_MATH, edit=Edit())
    tutor.delete("tutor", edit=Edit(if_match=(2,)))
    with pytest.raises(NotFoundError):
        tutor.preset("tutor")
    catalog = world.open()
    assert catalog.validate(preset(), edit=Edit())[0].revision == 3
    assert catalog.create(preset(), edit=Edit()).revision == 3
    catalog.delete("tutor", edit=Edit())
    assert catalog.replace("tutor", preset(), edit=Edit()).record.revision == 4


def test_a_rollback_is_a_new_revision(tutor):
    """Rolling back brings the old content back under the next number."""
    tutor.patch("tutor", MORE_MATH, edit=Edit())
    result = tutor.rollback("tutor", 1, edit=Edit(message="too much"))
    assert (result.created, result.changed) == (False, True)
    record = result.record
    assert (record.revision, record.message) == (3, "too much")
    assert record.document == preset()
    assert record.digest == tutor.preset("tutor", 1).digest


def test_a_rollback_to_the_present_document(tutor, world):
    """If nothing but a source's content differs, a rollback names it instead of doing nothing."""
    world.adapter("math", 99)
    tutor.replace_source("math", "math", edit=Edit())
    assert tutor.preset("tutor").label == "tutor@2"
    with pytest.raises(ConflictError, match="source math has other content than in tutor@1"):
        tutor.rollback("tutor", 1, edit=Edit())
    assert not tutor.rollback("tutor", 2, edit=Edit()).changed
    world.adapter("math", 0)
    tutor.replace_source("math", "math", edit=Edit())
    result = tutor.rollback("tutor", 1, edit=Edit())
    assert (result.changed, result.record.label) == (False, "tutor@3")
    assert result.record.digest == tutor.preset("tutor", 1).digest


def test_a_rollback_to_nothing(tutor):
    """A revision that is not there cannot be rolled back to."""
    for revision in (0, -1, 2, 10**30):
        with pytest.raises(NotFoundError, match="no revision"):
            tutor.rollback("tutor", revision, edit=Edit())


@pytest.mark.parametrize(
    ("patch", "error", "words"),
    [
        (weight(float("nan")), InvalidRequestError, "finite"),
        (weight(float("inf")), InvalidRequestError, "finite"),
        (weight(1e300), UnprocessableError, "float32"),
        (weight("x"), InvalidRequestError, "sources.math.weight"),
        ({"sources": {"nope": {"weight": 1}}}, UnprocessableError, "registered are: code, math"),
        ({"sources": {"math": None}}, InvalidRequestError, "sources"),
        ({"sources": None}, InvalidRequestError, "sources"),
        ({"method": "tiez"}, InvalidRequestError, "known are "),
        ({"parameters": {"x": 1}}, InvalidRequestError, "parameters.x"),
        (
            {"mode": "ensemble", **weight(-1), "ensemble": {"rule": "log_pool"}},
            InvalidRequestError,
            "must sum to more than 0",
        ),
        ({"slices": []}, InvalidRequestError, "slices"),
        ({"base_model": "math"}, InvalidRequestError, "base_model"),
        ({"foo": 1}, InvalidRequestError, "foo"),
        ({"revision": 9}, InvalidRequestError, "revision"),
    ],
)
def test_what_cannot_be_built_is_refused(tutor, patch, error, words):
    """A revision that cannot be built is refused with the reason, and the old one goes on."""
    serving = tutor.resolve("tutor")
    with pytest.raises(error, match=words):
        tutor.patch("tutor", patch, edit=Edit())
    assert tutor.resolve("tutor") == serving
    assert len(tutor.revisions("tutor")) == 1


def test_the_ensemble_block_is_kept(catalog):
    """How the ensemble combines is checked and stored whatever the mode; defaults are left out."""
    ensemble = {"rule": "linear_pool", "temperature_order": "before"}
    record = catalog.create(preset(ensemble=ensemble), edit=Edit())
    assert record.to_json()["ensemble"] == ensemble
    assert catalog.create(preset("plain"), edit=Edit()).to_json()["ensemble"] == {
        "rule": "task_arithmetic"
    }


def test_a_dry_run_stores_nothing(catalog):
    """Validating says what a document would become, by the rules of an edit, and no more."""
    record, explanation = catalog.validate(preset(), edit=Edit())
    assert (record.label, record.state) == ("tutor@1", "ready")
    assert explanation["digest"] == record.digest
    assert catalog.presets() == []
    catalog.create(preset(), edit=Edit())
    assert catalog.validate(preset(), edit=Edit())[0] == catalog.preset("tutor")
    assert catalog.validate(preset(seed=1), edit=Edit())[0].label == "tutor@2"
    with pytest.raises(UnprocessableError):
        catalog.validate(preset(sources={"nope": {"weight": 1}}), edit=Edit())
    assert catalog.preset("tutor").revision == 1


def test_a_commit_that_fails_publishes_nothing(tutor, world):
    """If the database refuses the commit, the caller gets an error and the old one serves."""
    serving = tutor.resolve("tutor")
    with world.store._engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE INSERT ON revisions BEGIN "
                "SELECT RAISE(ABORT, 'disk is full'); END"
            )
        )
    for attempt in (
        lambda: tutor.patch("tutor", MORE_MATH, edit=Edit()),
        lambda: tutor.patch("tutor", MORE_MATH, edit=Edit(wait=False)),
        lambda: tutor.create(preset("other"), edit=Edit()),
    ):
        with pytest.raises(StoreError, match="nothing changed") as caught:
            attempt()
        assert caught.value.status == 503
    assert [record.label for record in tutor.presets()] == ["tutor@1"]
    assert tutor.resolve("tutor") == serving
    with world.store._engine.begin() as connection:
        connection.execute(text("DROP TRIGGER full"))
    assert tutor.patch("tutor", MORE_MATH, edit=Edit()).record.revision == 2


def test_a_full_disk_publishes_nothing(tutor, world):
    """When the database cannot grow, an edit that needs room fails whole, and later ones work."""

    def limit_pages(number: int) -> None:
        with world.store._engine.connect() as connection:
            connection.execute(text(f"PRAGMA max_page_count = {number}"))

    limit_pages(1)  # SQLite takes the present size instead
    with pytest.raises(StoreError, match="full"):
        tutor.patch("tutor", {"description": "x" * 1_000_000}, edit=Edit())
    assert tutor.preset("tutor").revision == 1
    limit_pages(1_000_000)
    assert tutor.patch("tutor", {"description": "x" * 1_000_000}, edit=Edit()).changed
    catalog = world.open()
    assert len(catalog.preset("tutor").document.description) == 1_000_000


def test_two_servers_on_one_database(tutor, world):
    """A revision that another process stored is not overwritten: the edit is refused."""
    with world.store.writing() as writer:
        stored = world.store.revision("tutor", 1)
        other = type(stored)(
            type(stored.record)(
                document=stored.record.document,
                revision=2,
                digest=digest("c"),
                state="ready",
                path="blend",
                author="",
                message="",
                created_at=stored.record.created_at,
                updated_at=stored.record.created_at,
            ),
            stored.sources,
        )
        writer.add_revision(other, kept=100)
    with pytest.raises(ConflictError, match="another process"):
        tutor.patch("tutor", MORE_MATH, edit=Edit())
    assert tutor.preset("tutor").revision == 1


def test_of_two_writers_one_wins(tutor):
    """Of many edits that count on the same revision exactly one is made."""
    barrier, won, lost = threading.Barrier(8), [], []

    def write(number: int) -> None:
        barrier.wait()
        try:
            tutor.patch("tutor", weight(number + 1.0), edit=Edit(if_match=(1,)))
            won.append(number)
        except PreconditionFailedError:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert tutor.preset("tutor").revision == 2
    assert tutor.preset("tutor").document.sources["math"]["weight"] == won[0] + 1.0


def test_readers_never_see_a_mixture(tutor):
    """While one thread edits, every answer has the weights of the revision that it names."""
    stop, wrong, seen = threading.Event(), [], set()
    tutor.patch("tutor", weight(2.0), edit=Edit())  # from here on the weight is the revision

    def read() -> None:
        last = 0
        while not stop.is_set():
            served = tutor.resolve("tutor")
            coefficient = served.members[0].weights.coefficients[0, 0].item()
            if coefficient != served.revision or served.revision < last:
                wrong.append(served)
            last = served.revision
            seen.add(last)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3, 60):
        record = tutor.patch("tutor", weight(float(number)), edit=Edit()).record
        assert record.revision == number
        assert tutor.resolve("tutor").revision == number
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 3


def test_a_request_keeps_its_weights(tutor):
    """What a request resolved stays as it was after edits and a deletion."""
    served = tutor.resolve("tutor")
    before = served.members[0].weights.coefficients.clone()
    tutor.patch("tutor", MORE_MATH, edit=Edit())
    tutor.delete("tutor", edit=Edit())
    assert (served.members[0].weights.coefficients == before).all()
    assert served.label == "tutor@1"


def test_observers_learn_how_edits_went(world):
    """Every edit is observed with its outcome and phases; names that never were are left out."""
    listener = Listener()
    catalog = world.open_with_sources(observer=listener)
    catalog.create(preset(), edit=Edit())
    catalog.patch("tutor", {}, edit=Edit())
    with pytest.raises(InvalidRequestError):
        catalog.patch("tutor", {"foo": 1}, edit=Edit())
    with pytest.raises(NotFoundError):
        catalog.delete("nobody", edit=Edit())
    catalog.delete("tutor", edit=Edit())
    whole = frozenset({"validate", "plan", "commit", "publish"})
    assert listener.edits == [
        ("tutor", "create", "changed", whole),
        ("tutor", "patch", "unchanged", frozenset({"validate"})),
        ("tutor", "patch", "refused", frozenset({"validate"})),
        ("", "delete", "refused", frozenset()),
        ("tutor", "delete", "changed", frozenset({"commit", "publish"})),
    ]


def test_failures_of_the_server_are_observed_as_such(world):
    """An edit that the database failed is observed as failed, not as the caller's mistake."""
    listener = Listener()
    catalog = world.open_with_sources(observer=listener)
    with world.store._engine.begin() as connection:
        connection.execute(text("DROP TABLE revisions"))
    with pytest.raises(StoreError):
        catalog.create(preset(), edit=Edit())
    assert listener.edits[-1][:3] == ("", "create", "failed")
