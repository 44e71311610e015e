"""What is said of sources and presets whose trial on plain text, or whose figures, are bad."""

import math
from dataclasses import replace

import pytest

from merging.checkpoint_weights import open_checkpoint
from merging.errors import BaseMismatchError
from merging.relation import Relation
from server.errors import UnprocessableError
from server.presets.catalog import Catalog, Edit
from server.presets.doubts import MIN_ALIGNMENT, Trial, ensemble_key
from server.presets.sources import SourceRegistry
from server.presets.tryouts import Candidate
from tests.server.presets.forge import write_checkpoint
from tests.server.presets.test_published import Listener
from tests.server.presets.tiny import World, preset, tiny_base

GOOD = Trial(num_tokens=63, loss=3.4, base_loss=3.0)
BROKEN = replace(GOOD, loss=11.0)
FAR = {"math": {"weight": 3.0}, "code": {"weight": 3.0}}


def note(catalog: Catalog, model: str, trial: Trial) -> None:
    """Say how a source or a preset did."""
    found = [*catalog.tryouts.sources(), *catalog.tryouts.presets()]
    (candidate,) = (c for c in found if c.served.model == model)
    catalog.tryouts.note(candidate, trial)


def test_weights_are_doubted_in_the_answer_of_an_edit(catalog):
    """POST, PUT, PATCH and a dry run say at once that weights are far above 1; explain and every
    answer say it too, and it ends with the weights.
    """
    catalog.create(preset(), edit=Edit())
    record = catalog.patch("tutor", {"sources": FAR}, edit=Edit()).record.to_json()
    assert record["suspect"] is True
    (warning,) = record["warnings"]
    assert "count 6 times in all (code 3, math 3)" in warning
    assert catalog.preset("tutor").to_json()["warnings"] == [warning]
    assert catalog.explain("tutor")["warnings"] == [warning]
    assert catalog.resolve("tutor").warnings == (warning,)
    told, explained = catalog.validate(preset("other", sources=FAR), edit=Edit())
    assert (told.to_json()["suspect"], explained["suspect"]) == (True, True)
    good = catalog.patch("tutor", {"sources": {"math": None, "code": {"weight": 1}}}, edit=Edit())
    assert (good.record.to_json()["suspect"], good.record.to_json()["warnings"]) == (False, [])
    assert catalog.resolve("tutor").warnings == ()
    assert catalog.explain("tutor", 2)["warnings"] == [warning]


def test_what_a_patch_repeats_of_them_has_no_effect(catalog):
    """A document that was read before its trial may be sent back after it."""
    catalog.create(preset(), edit=Edit())
    document = catalog.preset("tutor").to_json()
    note(catalog, "tutor", BROKEN)
    assert catalog.patch("tutor", document, edit=Edit()).changed is False


def test_a_merge_that_breaks_plain_text_is_suspect(world, caplog):
    """Both figures are told: in explain, in later answers, in the log and to the metrics."""
    listener = Listener()
    catalog = world.open_with_sources(observer=listener)
    catalog.create(preset(), edit=Edit())
    assert listener.suspects["tutor"] is False
    note(catalog, "tutor", BROKEN)
    (warning,) = catalog.explain("tutor")["warnings"]
    assert "11.00 nats a token" in warning
    assert "the base's 3.00" in warning
    assert catalog.resolve("tutor").warnings == (warning,)
    assert "tutor@1 is suspect" in caplog.text
    assert "docs/gibberish.md" in caplog.text
    assert listener.suspects["tutor"] is True
    catalog.delete("tutor", edit=Edit())
    assert listener.suspects["tutor"] is None


@pytest.mark.parametrize(
    ("source", "merge", "is_suspect"), [(3.2, 4.9, False), (3.2, 5.1, True), (5.5, 6.4, False)]
)
def test_a_merge_is_held_against_its_sources(catalog, source, merge, is_suspect):
    """Where a source writes another text than plain text, so may a merge of it."""
    catalog.create(preset(sources={"math": {"weight": 1.0}, "code": {"weight": 0.1}}), edit=Edit())
    note(catalog, "math", replace(GOOD, loss=source))
    note(catalog, "tutor", replace(GOOD, loss=merge))
    assert catalog.preset("tutor").to_json()["suspect"] is is_suspect


@pytest.mark.parametrize(
    ("trial", "told"),
    [
        (BROKEN, "its loss is 11.00 nats a token, and the base's 3.00"),
        (replace(GOOD, loss=math.inf), "are not finite"),
        (replace(GOOD, alignment=MIN_ALIGNMENT / 2), "trained on another base, or not at all"),
    ],
)
def test_a_source_of_another_base(catalog, trial, told):
    """It stays ready, and is called suspect: on its card, and in every preset that uses it."""
    catalog.create(preset(), edit=Edit())
    note(catalog, "math", trial)
    card = catalog.source("math").to_json()
    assert (card["state"], card["suspect"]) == ("ready", True)
    assert told in card["warnings"][0]
    assert catalog.preset("tutor").to_json()["warnings"] == [f"sources.math: {card['warnings'][0]}"]
    assert told in catalog.resolve("math").warnings[0]
    assert catalog.source("code").to_json()["suspect"] is False


def test_a_trial_proves_more_than_a_name(world):
    """A right adapter that records another hub id is no longer doubted once it was tried."""
    catalog = world.open_with_sources(base=replace(tiny_base(), hub_id="org/tiny"))
    config = world.sources / "math" / "adapter_config.json"
    config.write_text(config.read_text().replace('"tiny"', '"org/huge"'))
    catalog.replace_source("math", "math", edit=Edit())
    assert catalog.source("math").is_suspect
    note(catalog, "math", replace(GOOD, alignment=MIN_ALIGNMENT + 1))
    assert not catalog.source("math").is_suspect
    assert "org/huge" in catalog.source("math").warnings[0]


def test_ensembles_are_tried_as_such(catalog):
    """The trial of an ensemble says nothing of the merge, which has the same digest; a pool divides
    by the sum of its weights, so that they may be any.
    """
    catalog.create(preset(mode="ensemble"), edit=Edit())
    note(catalog, "tutor", BROKEN)
    assert catalog.preset("tutor").to_json()["suspect"] is True
    assert catalog.resolve("tutor").warnings
    assert catalog.resolve("tutor:merge").warnings == ()
    pool = {"mode": "ensemble", "ensemble": {"rule": "log_pool"}, "sources": FAR}
    catalog.create(preset("pool", **pool), edit=Edit())
    assert catalog.preset("pool").to_json()["suspect"] is False
    assert ensemble_key("tutor@1") != "tutor@1"


def test_what_was_tried_is_not_tried_again(catalog):
    """A candidate is found once for each content, newest edits first."""
    for name in ("one", "two"):
        catalog.create(preset(name), edit=Edit())
    catalog.patch("one", {"sources": {"math": {"weight": 0.7}}}, edit=Edit())
    assert [c.served.label for c in catalog.tryouts.presets()] == ["one@2", "two@1"]
    note(catalog, "one", GOOD)
    assert [c.served.label for c in catalog.tryouts.presets()] == ["two@1"]
    assert [c.served.model for c in catalog.tryouts.sources()] == ["code", "math"]
    note(catalog, "math", GOOD)
    assert [c.served.model for c in catalog.tryouts.sources()] == ["code"]
    assert all(isinstance(c, Candidate) for c in catalog.tryouts.sources())


def test_an_unrelated_checkpoint_is_refused(monkeypatch, tmp_path):
    """Its figures are named, and the option that takes it all the same; of a random base, or of
    related weights, nothing is refused.
    """
    base = open_checkpoint(write_checkpoint(tmp_path / "base", 0))
    other = write_checkpoint(tmp_path / "other", 1)

    def registry(relation: Relation, **options) -> SourceRegistry:
        monkeypatch.setattr("server.presets.sources.relate", lambda *_: relation)
        return SourceRegistry(tiny_base(), resident=base, **options)

    unrelated = Relation(relative_norm=1.41, cosine=0.0, unevenness=5.0)
    strict = registry(unrelated)
    content, _ = strict.read(other)
    with pytest.raises(BaseMismatchError, match=r"1\.41 .*0\.00; --allow-base-mismatch"):
        strict.check_related(content)
    allowing = registry(unrelated, allow_base_mismatch=True)
    content, warnings = allowing.read(other)
    allowing.check_related(content)
    assert "no fine-tune of this base" in warnings[0]
    for relation in (replace(unrelated, unevenness=1.0), Relation(0.5, 0.9, 5.0)):
        lenient = registry(relation)
        content, warnings = lenient.read(other)
        lenient.check_related(content)
        assert bool(warnings) == relation.is_unrelated


def test_registration_refuses_it(world: World, monkeypatch, tmp_path):
    """POST and PUT of sources answer 422 with the reason."""
    unrelated = BaseMismatchError(["it is no fine-tune of this base"])

    def refuse(self, content) -> None:
        raise unrelated

    catalog = world.open_with_sources()
    monkeypatch.setattr(SourceRegistry, "check_related", refuse)
    world.adapter("third", 5)
    with pytest.raises(UnprocessableError, match="no fine-tune of this base"):
        catalog.register_source("third", "third")
