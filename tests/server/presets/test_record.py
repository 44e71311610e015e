"""Records and cards, as they are served."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from server.presets.document import SERVER_FIELDS
from server.presets.preset_warnings import PresetWarnings
from server.presets.record import (
    Edit,
    ModelCard,
    PresetRecord,
    SourceCard,
    SourceDelta,
    now,
    timestamp,
)
from tests.server.presets.tiny import digest, preset

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def record(**fields) -> PresetRecord:
    """A record at revision 7."""
    values = {
        "document": preset(),
        "revision": 7,
        "digest": digest("a"),
        "state": "ready",
        "path": "blend",
        "author": "ada",
        "message": "more maths",
        "created_at": NOON,
        "updated_at": NOON,
    }
    return PresetRecord(**{**values, **fields})


def test_a_record_is_the_document_and_the_servers_fields():
    """The JSON of a record is the document, followed by exactly the fields of the server."""
    served = record(warnings=PresetWarnings(("why",), ("also",))).to_json()
    assert set(served) == set(preset().to_json()) | SERVER_FIELDS - {"reasons"}
    assert {key: served[key] for key in SERVER_FIELDS - {"reasons"}} == {
        "revision": 7,
        "digest": digest("a"),
        "state": "ready",
        "path": "blend",
        "suspect": True,
        "warnings": ["why", "also"],
        "author": "ada",
        "message": "more maths",
        "created_at": "2026-05-04T12:00:00.000000Z",
        "updated_at": "2026-05-04T12:00:00.000000Z",
    }


def test_only_what_serves_has_warnings():
    """Of a revision that does not serve nothing is said: neither that it is suspect nor not."""
    assert not {"suspect", "warnings"} & record().to_json().keys()


def test_a_failed_record_says_why():
    """The JSON of a record that has failed has its reasons, too."""
    served = replace(record(), state="failed", reasons=("gone",)).to_json()
    assert (served["state"], served["reasons"]) == ("failed", ["gone"])


def test_a_label_names_preset_and_revision():
    """A record's label is a model string that always means this revision."""
    assert record().label == "tutor@7"


def test_times_are_in_utc():
    """A moment in any time zone is written in UTC."""
    east = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 5, 4, 14, 0, tzinfo=east)) == timestamp(NOON)
    assert now().tzinfo is UTC


def test_an_edit_has_no_condition_by_default():
    """An edit without conditions waits, and holds on any revision."""
    assert Edit() == Edit("", "", None, False, False, True)


def test_a_source_card_in_json():
    """A source is served with its kind, its state, and the presets that use it."""
    card = SourceCard(
        name="math",
        path=Path("/adapters/math"),
        kind="adapter",
        digest=digest("b"),
        state="failed",
        reasons=("gone",),
        warnings=(),
        num_bytes=0,
        base_name="tiny",
        base_digest=None,
        delta=SourceDelta("dense", ("DoRA",), 2.0),
        parent="sql",
        presets=("tutor",),
        created_at=NOON,
        updated_at=NOON,
    )
    assert card.to_json() == {
        "name": "math",
        "kind": "adapter",
        "path": "/adapters/math",
        "digest": digest("b"),
        "state": "failed",
        "suspect": False,
        "reasons": ["gone"],
        "warnings": [],
        "num_bytes": 0,
        "base_name": "tiny",
        "base_digest": None,
        "delta": {
            "form": "dense",
            "reasons": ["DoRA"],
            "seconds": 2.0,
            "convert": "mergeserve inspect /adapters/math --model BASE --to-lora RANK --out DIR",
        },
        "parent": "sql",
        "presets": ["tutor"],
        "created_at": "2026-05-04T12:00:00.000000Z",
        "updated_at": "2026-05-04T12:00:00.000000Z",
    }


def test_a_model_card_in_json():
    """A model card has OpenAI's fields, root and parent, and a revision only for presets."""
    card = ModelCard("tutor", "tiny", "tiny", 7, 1000)
    assert card.to_json() == {
        "id": "tutor",
        "object": "model",
        "created": 1000,
        "owned_by": "mergeserve",
        "root": "tiny",
        "parent": "tiny",
        "revision": 7,
    }
    assert "revision" not in ModelCard("tiny", "tiny", None, None, 1000).to_json()
