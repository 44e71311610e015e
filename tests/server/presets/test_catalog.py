"""The catalog against a simple model of what it promises."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.errors import ConflictError, NotFoundError, PreconditionFailedError
from server.presets.catalog import Catalog, Edit
from server.presets.document import PresetDocument
from tests.server.presets.tiny import World, preset

KEPT = 4
names = st.sampled_from(["one", "two"])
weights = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def document(name: str, weight: float) -> PresetDocument:
    return preset(name, sources={"math": {"weight": weight}})


@dataclass
class Life:
    """What the model knows of a name: weights by revision, oldest first, and the last number."""

    last: int = 0
    revisions: dict[int, float] = field(default_factory=dict)

    def add(self, weight: float) -> None:
        self.last += 1
        self.revisions[self.last] = weight
        self.revisions.pop(self.last - KEPT, None)

    @property
    def current(self) -> float | None:
        return self.revisions.get(self.last)

    def put(self, weight: float) -> None:
        if weight != self.current:
            self.add(weight)


class Edits(RuleBasedStateMachine):
    """Random edits, restarts and new contents, on two presets of one source."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.world = World(self.root)
        self.seed = 0
        self.world.adapter("math", self.seed)
        self.catalog: Catalog = self.world.open(revisions_kept=KEPT)
        self.catalog.register_source("math", "math")
        self.lives = {"one": Life(), "two": Life()}
        self.digests: dict[str, str] = {}  # by label, for ever
        self.seeds: dict[str, int] = {}  # of each label's content

    def teardown(self) -> None:
        self.world.close()
        shutil.rmtree(self.root)

    @rule(name=names, weight=weights)
    def create(self, name: str, weight: float) -> None:
        life = self.lives[name]
        if life.current is None:
            self.catalog.create(document(name, weight), edit=Edit())
            life.add(weight)
        else:
            with pytest.raises(ConflictError):
                self.catalog.create(document(name, weight), edit=Edit())

    @rule(name=names, weight=weights)
    def put(self, name: str, weight: float) -> None:
        life = self.lives[name]
        before = life.last
        is_new = life.current is None
        result = self.catalog.replace(name, document(name, weight), edit=Edit())
        life.put(weight)
        assert result.created == is_new
        assert result.changed == (life.last > before)

    @rule(name=names, weight=weights, behind=st.integers(0, 1))
    def patch(self, name: str, weight: float, behind: int) -> None:
        life = self.lives[name]
        edit = Edit(if_match=(life.last - behind,))
        patch = {"sources": {"math": {"weight": weight}}}
        if life.current is None or behind:
            with pytest.raises((NotFoundError, PreconditionFailedError)):
                self.catalog.patch(name, patch, edit=edit)
        else:
            self.catalog.patch(name, patch, edit=edit)
            life.put(weight)

    @rule(name=names, data=st.data())
    @precondition(lambda self: any(life.last for life in self.lives.values()))
    def rollback(self, name: str, data: st.DataObject) -> None:
        life = self.lives[name]
        revision = data.draw(st.integers(1, life.last + 1))
        is_kept = revision in life.revisions
        if is_kept and self.differs_by_content(name, revision):
            with pytest.raises(ConflictError):
                self.catalog.rollback(name, revision, edit=Edit())
        elif is_kept:
            self.catalog.rollback(name, revision, edit=Edit())
            life.put(life.revisions[revision])
        else:
            with pytest.raises(NotFoundError):
                self.catalog.rollback(name, revision, edit=Edit())

    def differs_by_content(self, name: str, revision: int) -> bool:
        """Whether a revision has the newest one's document, and other content of its source."""
        life = self.lives[name]
        is_same = life.revisions[revision] == life.current
        return is_same and self.seeds[f"{name}@{revision}"] != self.seed

    @rule(name=names)
    def delete(self, name: str) -> None:
        life = self.lives[name]
        if life.current is None:
            with pytest.raises(NotFoundError):
                self.catalog.delete(name, edit=Edit())
        else:
            self.catalog.delete(name, edit=Edit())
            life.revisions.clear()

    @rule()
    def new_content(self) -> None:
        """Every preset gets a revision with the weights that it had."""
        self.seed += 1
        folder = f"math{self.seed}"
        self.world.adapter(folder, self.seed)
        _, records = self.catalog.replace_source("math", folder, edit=Edit())
        living = {name for name, life in self.lives.items() if life.current is not None}
        assert {record.name for record in records} == living
        for name in living:
            self.lives[name].add(self.lives[name].revisions[self.lives[name].last])

    @rule()
    def restart(self) -> None:
        self.catalog = self.world.open(revisions_kept=KEPT)

    @invariant()
    def what_is_served_is_the_newest(self) -> None:
        """A name serves its newest revision, or nothing after a deletion."""
        for name, life in self.lives.items():
            if life.current is None:
                with pytest.raises(NotFoundError):
                    self.catalog.resolve(name)
            else:
                served = self.catalog.resolve(name)
                assert served.revision == life.last
                assert self.catalog.preset(name).document == document(name, life.current)

    @invariant()
    def what_is_kept_never_changes(self) -> None:
        """Every kept revision has the document and the digest that it always had."""
        for name, life in self.lives.items():
            if life.current is None:
                continue
            records = self.catalog.revisions(name)
            assert [record.revision for record in records] == sorted(life.revisions, reverse=True)
            for record in records:
                assert record.document == document(name, life.revisions[record.revision])
                digest = self.digests.setdefault(record.label, record.digest)
                assert record.digest == digest
                self.seeds.setdefault(record.label, self.seed)
                assert self.catalog.resolve(record.label).digest == digest


Edits.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestEdits = Edits.TestCase


def test_two_catalogs_in_one_process(tmp_path):
    """Nothing is shared between catalogs: each has its own presets, sources and base."""
    worlds = []
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        worlds.append(World(tmp_path / name))
    left, right = (world.open_with_sources() for world in worlds)
    left.create(preset(), edit=Edit())
    assert [record.label for record in left.presets()] == ["tutor@1"]
    assert right.presets() == []
    for world in worlds:
        world.close()


def test_a_catalog_can_be_closed_twice(catalog):
    """Closing is idempotent."""
    catalog.close()
    catalog.close()
