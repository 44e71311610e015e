"""The snapshot and its replacement."""

import pytest

from server.errors import ConflictError
from server.presets.catalog import Edit
from server.presets.published import Published
from server.presets.sources import SourceRegistry
from server.presets.variants import Variants
from tests.server.presets.tiny import preset, tiny_base


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.edits: list[tuple[str, str, str, frozenset[str]]] = []
        self.serving: list[dict[str, tuple[int, str]]] = []
        self.suspects: dict[str, bool | None] = {}

    def preset_edited(self, preset, operation, outcome, seconds_by_phase) -> None:
        assert all(seconds >= 0 for seconds in seconds_by_phase.values())
        self.edits.append((preset, operation, outcome, frozenset(seconds_by_phase)))

    def presets_changed(self, revisions) -> None:
        self.serving.append(dict(revisions))

    def preset_suspected(self, preset, is_suspect) -> None:
        self.suspects[preset] = is_suspect

    def source_suspected(self, source, is_suspect) -> None:
        self.suspects[source] = is_suspect


def test_a_snapshot_never_changes(catalog):
    """Whoever holds a snapshot goes on seeing what it was, whatever is published after."""
    before = catalog._published.snapshot
    catalog.create(preset(), edit=Edit())
    held = catalog._published.snapshot
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    catalog.delete("tutor", edit=Edit())
    assert before.presets == {}
    assert held.presets["tutor"].record.label == "tutor@1"
    assert catalog._published.snapshot.presets == {}


def test_observers_learn_what_serves(world):
    """After each change observers get revision and digest of every preset that serves."""
    listener = Listener()
    catalog = world.open_with_sources(observer=listener)
    first = catalog.create(preset(), edit=Edit())
    catalog.create(preset("other"), edit=Edit())
    catalog.delete("tutor", edit=Edit())
    assert listener.serving[-3:] == [
        {"tutor": (1, first.digest)},
        {"tutor": (1, first.digest), "other": (1, first.digest)},
        {"other": (1, first.digest)},
    ]


def test_names_of_the_base_are_never_free():
    """`base` and the base's id are taken from the start."""
    base = tiny_base()
    published = Published(base, SourceRegistry(base), Variants(), Listener())
    for name in ("base", "tiny"):
        with pytest.raises(ConflictError, match="the resident base"):
            published.check_free(name, kind="preset")
    published.check_free("tutor", kind="preset")
