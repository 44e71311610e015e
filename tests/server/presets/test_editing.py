"""Conditions and patches."""

import pytest

from server.errors import InvalidRequestError, PreconditionFailedError
from server.presets.document import SERVER_FIELDS
from server.presets.editing import (
    CHANGING_FIELDS,
    Phases,
    check_conditions,
    check_same_name,
    cleaned,
    patched,
)
from server.presets.record import Edit
from tests.server.presets.test_record import record
from tests.server.presets.tiny import preset


@pytest.mark.parametrize(
    ("edit", "revision"),
    [
        (Edit(), None),
        (Edit(), 7),
        (Edit(if_match=(7,)), 7),
        (Edit(if_match=(3, 7)), 7),
        (Edit(if_match_any=True), 7),
        (Edit(if_none_match_any=True), None),
    ],
)
def test_conditions_that_hold(edit, revision):
    """An edit goes on where its condition holds on the current revision."""
    check_conditions(edit, "tutor", revision)


@pytest.mark.parametrize(
    ("edit", "revision", "words"),
    [
        (Edit(if_match=(6,)), 7, "is at 7 and If-Match asks for 6"),
        (Edit(if_match=(6, 8)), 7, "asks for 6, 8"),
        (Edit(if_match=()), 7, "another revision"),
        (Edit(if_match=(1,)), None, "does not exist"),
        (Edit(if_match_any=True), None, "does not exist"),
        (Edit(if_none_match_any=True), 7, "creates only"),
    ],
)
def test_conditions_that_do_not_hold(edit, revision, words):
    """Elsewhere the error says what the preset is at, and what was asked for."""
    with pytest.raises(PreconditionFailedError, match=words) as caught:
        check_conditions(edit, "tutor", revision)
    assert caught.value.status == 412


def test_a_patch_changes_what_it_names():
    """One weight is changed, and everything else stays."""
    fields = {"math": {"weight": 0.6}, "code": {"weight": 0.2}}
    old = record(document=preset(sources=fields, description="kept"))
    new = patched(old, {"sources": {"math": {"weight": 0.8}}})
    assert new.sources == {"math": {"weight": 0.8}, "code": {"weight": 0.2}}
    assert new.description == "kept"


@pytest.mark.parametrize("weight", [0.8, 1, [0, 1], [{"filter": "mlp", "value": 1}]])
def test_a_bare_setting_is_a_source_s_weight(weight):
    """In documents and in patches, where the source's other settings stay; it is kept as a map."""
    assert preset(sources={"math": weight}).sources == {"math": {"weight": weight}}
    fields = {"math": {"weight": 0.6, "density": 0.5}, "code": {"weight": 0.2}}
    new = patched(record(document=preset(sources=fields)), {"sources": {"math": weight}})
    assert new.sources == {**fields, "math": {"weight": weight, "density": 0.5}}


def test_null_returns_a_field_to_its_default():
    """A null removes a source, a default or a description, as in RFC 7396."""
    old = record(
        document=preset(
            description="x",
            sources={"math": {"weight": 1}, "code": {"weight": 1}},
            defaults={"temperature": 0.5, "top_p": 0.9},
            overrides="none",
        )
    )
    new = patched(
        old,
        {
            "description": None,
            "sources": {"code": None},
            "defaults": {"top_p": None},
            "overrides": None,
        },
    )
    assert new == preset(sources={"math": {"weight": 1}}, defaults={"temperature": 0.5})


def test_the_name_may_be_repeated():
    """A patch with the preset's own name is fine; with another, or none, it is refused."""
    assert patched(record(), {"name": "tutor"}) == record().document
    for name in ("other", None, 7):
        with pytest.raises(InvalidRequestError) as caught:
            patched(record(), {"name": name})
        assert caught.value.param == "name"


def test_the_servers_fields_may_be_repeated():
    """What a GET gave may be sent back in a patch, and has no effect."""
    assert patched(record(), record().to_json()) == record().document


@pytest.mark.parametrize("field", sorted(SERVER_FIELDS - CHANGING_FIELDS))
def test_the_servers_fields_are_not_set(field):
    """A patch that would set a field of the server is refused, and says how to do it instead."""
    with pytest.raises(InvalidRequestError, match="belongs to the server") as caught:
        patched(record(), {field: "mine"})
    assert caught.value.param == field


@pytest.mark.parametrize("patch", [None, [], "x", 3])
def test_a_patch_is_an_object(patch):
    """A patch that is not an object would replace the document by something else: refused."""
    with pytest.raises(InvalidRequestError, match="a merge patch is a JSON object"):
        patched(record(), patch)


def test_a_patched_document_is_checked():
    """The document that a patch leads to is held to the same rules as any other."""
    with pytest.raises(InvalidRequestError, match="known are name"):
        patched(record(), {"wieght": 1})
    with pytest.raises(InvalidRequestError, match="finite"):
        patched(record(), {"sources": {"math": {"weight": float("nan")}}})


def test_a_document_names_the_preset_that_it_replaces():
    """PUT does not rename."""
    check_same_name("tutor", "tutor")
    with pytest.raises(InvalidRequestError, match="cannot be renamed"):
        check_same_name("tutor", "other")


def test_texts_are_made_storable():
    """Broken Unicode in author and message is replaced, and cannot break the database."""
    edit = cleaned(Edit(author="a\ud800", message="\udfffb", if_match=(1,)))
    assert edit == Edit(author="a?", message="?b", if_match=(1,))


def test_phases_add_up():
    """A phase that runs twice has the seconds of both, also when it fails."""
    phases = Phases()
    with phases.timed("plan"):
        pass
    once = phases.seconds["plan"]
    with pytest.raises(ZeroDivisionError), phases.timed("plan"):
        raise ZeroDivisionError
    assert phases.seconds["plan"] > once > 0
    assert set(phases.seconds) == {"plan"}
