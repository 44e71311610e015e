"""Old revisions."""

import pytest

from server.errors import NotFoundError
from server.presets.catalog import Edit
from tests.server.presets.tiny import preset


def edit_to(catalog, *weights: float) -> None:
    """Give math one weight after the other."""
    for weight in weights:
        catalog.patch("tutor", {"sources": {"math": {"weight": weight}}}, edit=Edit())


@pytest.fixture
def tutor(world):
    """A catalog that keeps 3 revisions, with tutor at revision 5, whose weights are 1 to 5."""
    catalog = world.open_with_sources(revisions_kept=3)
    catalog.create(preset(sources={"math": {"weight": 1.0}}), edit=Edit())
    edit_to(catalog, 2.0, 3.0, 4.0, 5.0)
    return catalog


@pytest.mark.parametrize("revision", [3, 4, 5])
def test_kept_revisions_can_be_called(tutor, revision):
    """A kept revision is called by its number, with the weights that it had."""
    served = tutor.resolve(f"tutor@{revision}")
    assert served.label == f"tutor@{revision}"
    assert served.model == f"tutor@{revision}"
    assert (served.members[0].weights.coefficients == revision).all()
    record = tutor.preset("tutor", revision)
    assert (record.revision, record.digest) == (revision, served.digest)
    assert record.document.sources == {"math": {"weight": float(revision)}}


@pytest.mark.parametrize("revision", [1, 2])
def test_pruned_revisions_say_so(tutor, revision):
    """A revision beyond those that are kept is not found, with the setting that says how many."""
    for attempt in (
        lambda: tutor.resolve(f"tutor@{revision}"),
        lambda: tutor.preset("tutor", revision),
        lambda: tutor.explain("tutor", revision),
        lambda: tutor.rollback("tutor", revision, edit=Edit()),
        lambda: tutor.model(f"tutor@{revision}"),
    ):
        with pytest.raises(NotFoundError, match=r"the last 3 are \(--revisions-kept\)"):
            attempt()


@pytest.mark.parametrize("revision", [0, -1, 6, 10**30])
def test_revisions_that_never_were(tutor, revision):
    """A number that was not used yet is not found, with the newest one."""
    with pytest.raises(NotFoundError, match="its newest is 5"):
        tutor.preset("tutor", revision)


def test_the_history(tutor):
    """The kept revisions are listed newest first; all know when the preset last changed."""
    records = tutor.revisions("tutor")
    assert [record.revision for record in records] == [5, 4, 3]
    assert records[0] == tutor.preset("tutor")
    assert {record.updated_at for record in records} == {records[0].created_at}
    assert records[2].created_at < records[1].created_at < records[0].created_at
    with pytest.raises(NotFoundError):
        tutor.revisions("nobody")


def test_revisions_before_a_deletion(tutor):
    """Revisions that were deleted with their preset do not come back with its name."""
    tutor.delete("tutor", edit=Edit())
    tutor.create(preset(), edit=Edit())
    edit_to(tutor, 0.75)
    with pytest.raises(NotFoundError, match="with the preset; the present one began with 6"):
        tutor.resolve("tutor@5")
    assert tutor.resolve("tutor@6").label == "tutor@6"


def test_one_revision_is_always_kept(world):
    """With one revision kept, each edit forgets the one before."""
    catalog = world.open_with_sources(revisions_kept=1)
    catalog.create(preset(), edit=Edit())
    edit_to(catalog, 2.0)
    assert [record.revision for record in catalog.revisions("tutor")] == [2]
    assert catalog.resolve("tutor").label == "tutor@2"


def test_kept_revisions_survive_a_restart(world, tutor):
    """After a restart a kept revision has the same digest."""
    digests = {record.revision: record.digest for record in tutor.revisions("tutor")}
    catalog = world.open(revisions_kept=3)
    for revision, digest in digests.items():
        assert catalog.resolve(f"tutor@{revision}").digest == digest
