"""Presets that are given at the start."""

from server.presets.catalog import Edit
from tests.server.presets.tiny import preset


def test_absent_presets_are_created(catalog):
    """A preset that does not exist is created, and says where it came from."""
    lines = catalog.seed_presets([preset(), preset("other")], "presets.yaml")
    assert lines == [
        "tutor@1 is created from presets.yaml",
        "other@1 is created from presets.yaml",
    ]
    assert catalog.preset("tutor").message == "from presets.yaml"


def test_the_same_again_is_silent(world, catalog):
    """At the next start the same file does nothing and says nothing."""
    catalog.seed_presets([preset()], "presets.yaml")
    catalog = world.open()
    assert catalog.seed_presets([preset()], "presets.yaml") == []
    assert catalog.preset("tutor").revision == 1


def test_an_edited_preset_is_never_overwritten(catalog):
    """A preset that differs from the file is kept, and the log says that the file is not."""
    catalog.seed_presets([preset()], "presets.yaml")
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    (line,) = catalog.seed_presets([preset()], "presets.yaml")
    assert "'tutor' of presets.yaml is not applied: it differs from tutor@2" in line
    assert catalog.preset("tutor").document.sources == {"math": {"weight": 0.9}}


def test_a_changed_file_is_not_applied(catalog):
    """A file that changed is not applied over a preset that was not edited either."""
    catalog.seed_presets([preset()], "presets.yaml")
    (line,) = catalog.seed_presets([preset(seed=1)], "presets.yaml")
    assert "is not applied" in line
    assert catalog.preset("tutor").revision == 1


def test_what_cannot_be_built_is_said(catalog):
    """A preset that cannot be created is said to be, and the others are created."""
    broken = preset("broken", sources={"nope": {"weight": 1}})
    lines = catalog.seed_presets([broken, preset("math"), preset()], "presets.yaml")
    assert "'broken' of presets.yaml is not created" in lines[0]
    assert "sources.nope" in lines[0]
    assert "is already a source" in lines[1]
    assert lines[2] == "tutor@1 is created from presets.yaml"


def test_a_deleted_preset_comes_back(world, catalog):
    """A preset that was deleted is absent, so the file creates it, under its next number."""
    catalog.seed_presets([preset()], "presets.yaml")
    catalog.delete("tutor", edit=Edit())
    catalog = world.open()
    assert catalog.seed_presets([preset()], "presets.yaml") == [
        "tutor@2 is created from presets.yaml"
    ]
