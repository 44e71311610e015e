"""Contents by digest: adapters are copied, checkpoints are noted."""

import shutil

import pytest

from merging.adapter import read_adapter
from merging.checkpoint_weights import open_checkpoint
from merging.errors import SourceError
from server.presets.contents import Contents, is_adapter, is_unchanged
from tests.server.presets.forge import write_checkpoint
from tests.server.presets.tiny import write_adapter


@pytest.fixture
def contents(tmp_path) -> Contents:
    return Contents(tmp_path / "contents")


def test_kinds_of_folders(tmp_path):
    """An adapter is told by its files, whole or not; anything else may be a checkpoint."""
    assert is_adapter(write_adapter(tmp_path / "adapter", 1))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").touch()
    assert is_adapter(tmp_path / "pickled")
    assert not is_adapter(write_checkpoint(tmp_path / "checkpoint", 1))
    assert not is_adapter(tmp_path / "nothing")


def test_an_adapter_is_copied(tmp_path, contents):
    """The copy of an adapter outlives its folder."""
    folder = write_adapter(tmp_path / "adapter", 1)
    adapter = read_adapter(folder)
    contents.keep(adapter, folder)
    shutil.rmtree(folder)
    assert contents.read(adapter.digest).digest == adapter.digest


def test_a_checkpoint_is_noted(tmp_path, contents):
    """A checkpoint takes no space, and is read from its folder while that holds it."""
    folder = write_checkpoint(tmp_path / "checkpoint", 1)
    checkpoint = open_checkpoint(folder)
    contents.keep(checkpoint, folder)
    kept = sum(file.stat().st_size for file in (tmp_path / "contents").rglob("*") if file.is_file())
    assert kept < 500
    assert contents.has(checkpoint.digest)
    again = Contents(tmp_path / "contents").read(checkpoint.digest)
    assert again.digest == checkpoint.digest
    write_checkpoint(folder, 2)
    with pytest.raises(SourceError, match="checkpoints are not copied"):
        contents.read(checkpoint.digest)
    shutil.rmtree(folder)
    assert not contents.has(checkpoint.digest)
    assert str(folder) in contents.gone(checkpoint.digest)


def test_a_checkpoint_that_moved(tmp_path, contents):
    """Kept again from another folder, a checkpoint is read from there."""
    first = write_checkpoint(tmp_path / "one", 1)
    second = write_checkpoint(tmp_path / "two", 1)
    contents.keep(open_checkpoint(first), first)
    contents.keep(open_checkpoint(second), second)
    shutil.rmtree(first)
    digest = open_checkpoint(second).digest
    assert contents.read(digest).folder == second


def test_in_memory(tmp_path):
    """Without a folder a checkpoint stays opened, and is gone when its files change."""
    contents, folder = Contents(None), write_checkpoint(tmp_path / "checkpoint", 1)
    checkpoint = open_checkpoint(folder)
    contents.keep(checkpoint, folder)
    assert contents.read(checkpoint.digest) is checkpoint
    write_checkpoint(folder, 2)
    assert not is_unchanged(checkpoint)
    assert not contents.has(checkpoint.digest)
    with pytest.raises(SourceError, match="changed since"):
        contents.read(checkpoint.digest)


def test_notes_that_cannot_be_read(tmp_path, contents):
    """A note that is damaged is a content that is gone."""
    folder = write_checkpoint(tmp_path / "checkpoint", 1)
    checkpoint = open_checkpoint(folder)
    contents.keep(checkpoint, folder)
    for text in ("", "{", "[]", "{}", '{"folder": 1}'):
        next((tmp_path / "contents").rglob("checkpoint.json")).write_text(text)
        assert not contents.has(checkpoint.digest)
        with pytest.raises(SourceError, match="gone"):
            contents.read(checkpoint.digest)


def test_pruning(tmp_path, contents):
    """What nothing names is forgotten; the checkpoint itself is not touched."""
    folder = write_checkpoint(tmp_path / "checkpoint", 1)
    checkpoint = open_checkpoint(folder)
    contents.keep(checkpoint, folder)
    contents.prune([])
    assert not contents.has(checkpoint.digest)
    assert is_unchanged(checkpoint)
