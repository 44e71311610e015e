"""Folders of safetensors: content digests, headers, and every kind of broken file."""

import hashlib
import json
import math
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from merging.checkpoint import (
    DTYPES,
    checkpoint_digest,
    read_header,
    read_tensors,
    tensor_entries,
)
from merging.errors import SourceError

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(7),
}


def shard(folder: Path) -> Path:
    """Save TENSORS in two shards with an index."""
    folder.mkdir()
    shards = {
        "x-00001.safetensors": ["b.weight", "empty"],
        "x-00002.safetensors": ["a.weight", "scalar"],
    }
    for file, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def single(folder: Path, name: str = "model.safetensors", **metadata: str) -> Path:
    """Save TENSORS in one file."""
    folder.mkdir()
    save_file(TENSORS, folder / name, metadata=metadata)
    return folder


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file of any header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_the_digest_does_not_depend_on_sharding_names_or_metadata(tmp_path: Path) -> None:
    """One file, another name, metadata, or two shards: the content is what counts."""
    digests = {
        checkpoint_digest(single(tmp_path / "single")),
        checkpoint_digest(single(tmp_path / "named", name="other.safetensors", format="pt")),
        checkpoint_digest(shard(tmp_path / "sharded")),
    }
    assert len(digests) == 1


def test_the_digest_is_golden(tmp_path: Path) -> None:
    """The digest of a folder is the one that the docs define, for ever: adapters record it."""
    save_file({"w": torch.tensor([1.0, 2.0])}, tmp_path / "model.safetensors")
    content = hashlib.sha256(struct.pack("<2f", 1.0, 2.0)).hexdigest()
    expected = hashlib.sha256(f'[["w","F32",[2],"{content}"]]'.encode()).hexdigest()
    assert checkpoint_digest(tmp_path) == f"sha256:{expected}"


@pytest.mark.parametrize(
    "change",
    [
        {"b.weight": torch.arange(4, dtype=torch.float16)},
        {"a.weight": torch.arange(6, dtype=torch.float32).reshape(3, 2)},
        {"scalar": torch.tensor(8)},
        {"more": torch.zeros(1)},
    ],
    ids=["dtype", "shape", "value", "name"],
)
def test_the_digest_sees_every_change_of_content(
    tmp_path: Path, change: dict[str, torch.Tensor]
) -> None:
    """Another dtype, shape, value or name gives another digest."""
    before = checkpoint_digest(single(tmp_path / "before"))
    save_file({**TENSORS, **change}, tmp_path / "before" / "model.safetensors")
    assert checkpoint_digest(tmp_path / "before") != before


def test_progress_runs_to_the_end(tmp_path: Path) -> None:
    """The callback is told growing bytes, and in the end all of them."""
    calls: list[tuple[int, int]] = []
    checkpoint_digest(single(tmp_path / "x"), lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (40, 40)
    assert len({total for _, total in calls}) == 1


def test_a_chunked_digest_is_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading in small chunks changes nothing."""
    folder = single(tmp_path / "x")
    whole = checkpoint_digest(folder)
    monkeypatch.setattr("merging.checkpoint.CHUNK", 5)
    assert checkpoint_digest(folder) == whole


def test_tensors_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    """Every tensor equals the one that the safetensors package reads, dtype and shape too."""
    folder = single(tmp_path / "x", format="pt")
    expected = load_file(folder / "model.safetensors")
    header, tensors = read_tensors(folder / "model.safetensors")
    assert tensors.keys() == expected.keys() == header.entries.keys()
    assert header.metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3))
def test_every_dtype_and_shape_survives(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: list[int]
) -> None:
    """Whatever safetensors writes of a supported dtype is read back bit for bit."""
    path = tmp_path_factory.mktemp("dtypes") / "model.safetensors"
    tensor = torch.randint(0, 2, shape).to(DTYPES[dtype])
    save_file({"x": tensor}, path)
    _, tensors = read_tensors(path)
    assert tensors["x"].dtype == tensor.dtype
    assert tensors["x"].tolist() == tensor.tolist()


def test_copies_in_memory_outlive_the_file(tmp_path: Path) -> None:
    """A tensor that was read does not change with the file."""
    folder = single(tmp_path / "x")
    _, tensors = read_tensors(folder / "model.safetensors")
    save_file({"a.weight": torch.zeros(2, 3)}, folder / "model.safetensors")
    assert torch.equal(tensors["a.weight"], TENSORS["a.weight"])


def test_headers_need_no_data(tmp_path: Path) -> None:
    """Entries tell dtype, shape and size of every tensor, sorted by name."""
    entries = tensor_entries(shard(tmp_path / "x"))
    assert list(entries) == sorted(TENSORS)
    assert (entries["a.weight"].dtype, entries["a.weight"].shape) == ("F32", (2, 3))
    assert entries["a.weight"].num_bytes == 24
    assert entries["empty"].num_bytes == 0


def test_only_what_transformers_loads_counts(tmp_path: Path) -> None:
    """Beside model.safetensors other files are not part of the checkpoint."""
    folder = single(tmp_path / "x")
    save_file({"stray": torch.zeros(1)}, folder / "consolidated.safetensors")
    assert "stray" not in tensor_entries(folder)


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file_is_named_with_its_sizes(tmp_path: Path, keep: int) -> None:
    """Cut anywhere, a file is refused by its path and its true size."""
    folder = single(tmp_path / "x")
    path = folder / "model.safetensors"
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"truncated") as error:
        checkpoint_digest(folder)
    assert str(path) in str(error.value)
    assert str(len(content)) in str(error.value)


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "by its header"),
        (b"\xff\xfe", "by its header"),
        (b"[" * 100_000, "by its header"),
        ([], "by its header"),
        ({"x": 3}, "by its header"),
        ({"x": {"dtype": "F32"}}, "by its header"),
        ({"x": entry(dtype=4)}, "by its header"),
        ({"x": entry(offsets=[0])}, "by its header"),
        ({"x": entry(dtype="I3")}, "unknown dtype, I3"),
        ({"x": entry(shape=[2])}, r"needs 8 bytes at \d+, and the header says 4"),
        ({"x": entry(shape=[-1, -1])}, "by its header"),
        ({"x": entry(shape=[True])}, "by its header"),
        ({"x": entry(shape=[1.0])}, "by its header"),
        ({"x": entry(shape=[math.inf])}, "by its header"),
        ({"x": entry(shape=[2**70, 0])}, "by its header"),
        ({"x": entry(shape=[2**50, 2**50, 0], offsets=[0, 0])}, "too large"),
        ({"x": entry(shape=[1] * 100)}, "too large"),
        ({"x": entry(shape=[10**4000] * 3)}, "by its header"),
        ({"x": entry(offsets=[0, math.inf])}, "by its header"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}', "by its header"),
        ({"x": entry(offsets=[0, 10**4000])}, "by its header"),
        ({"\ud800": entry()}, "by its header"),
        ({"__metadata__": {"base_digest": "\ud800"}, "x": entry()}, "by its header"),
        ({"x": entry(offsets=[4, 8])}, "needs 4 bytes at"),
        ({"x": entry(), "y": entry()}, "tensor y"),
        ({}, "truncated or damaged"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, message: str) -> None:
    """A header that is no JSON, or does not describe its file, is refused with what is wrong."""
    path = raw(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(SourceError, match=message):
        read_header(path)


def test_pickle_is_never_opened_and_the_way_out_is_said(tmp_path: Path) -> None:
    """A folder with pickle alone is refused by the files' names, with what to convert to."""
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin.*convert it to safetensors"):
        checkpoint_digest(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """No weights at all is said so."""
    with pytest.raises(SourceError, match=r"holds no \.safetensors file"):
        checkpoint_digest(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path that is not a folder is said so."""
    with pytest.raises(SourceError, match="is not a folder"):
        checkpoint_digest(tmp_path / "nothing")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrapped_a_model_is_no_part_of_its_names(tmp_path: Path, wrapper: str) -> None:
    """A checkpoint saved from inside DataParallel or torch.compile is the same checkpoint; where
    only some names begin so, they stay.
    """
    plain = single(tmp_path / "plain")
    (tmp_path / "wrapped").mkdir()
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in TENSORS.items()}
    save_file(wrapped, tmp_path / "wrapped" / "model.safetensors")
    assert tensor_entries(tmp_path / "wrapped").keys() == TENSORS.keys()
    assert checkpoint_digest(tmp_path / "wrapped") == checkpoint_digest(plain)
    save_file({**wrapped, "x": torch.ones(1)}, tmp_path / "wrapped" / "model.safetensors")
    assert tensor_entries(tmp_path / "wrapped").keys() == {*wrapped, "x"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_what_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    """A FIFO in place of a file of weights is not taken for one that is missing, nor waited for."""
    folder = single(tmp_path / "x", "other.safetensors")
    os.mkfifo(folder / name)
    with pytest.raises(SourceError, match=f"{name} cannot be read: it is a FIFO"):
        tensor_entries(folder)


def test_a_file_of_holes_is_refused(tmp_path: Path) -> None:
    """Its header may be right: what it announces was never written."""
    header = {"x": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    path = raw(tmp_path / "model.safetensors", header)
    os.truncate(path, path.stat().st_size + (1 << 40))
    with pytest.raises(SourceError, match=r"model\.safetensors cannot be read: it is sparse"):
        tensor_entries(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """An index that names a file that is not there is refused by that name."""
    folder = shard(tmp_path / "x")
    (folder / "x-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"missing: x-00002\.safetensors"):
        checkpoint_digest(folder)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    """An index that is no index is refused, not followed."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match="not an index"):
        checkpoint_digest(tmp_path)


def test_an_index_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    """A shard is looked for in the folder itself, whatever path the index gives."""
    single(tmp_path / "secret")
    folder = tmp_path / "x"
    folder.mkdir()
    index = {"weight_map": {"a.weight": "../secret/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="missing"):
        tensor_entries(folder)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    """The same name in two files is ambiguous, and both files are named."""
    for file in ("one.safetensors", "two.safetensors"):
        save_file({"w": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(SourceError, match=r"w is both in .*one.* and in .*two"):
        tensor_entries(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """What the system will not open is a SourceError too."""
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        read_header(tmp_path / "model.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that ends before the header says so is not padded with zeros."""
    path = single(tmp_path / "x") / "model.safetensors"
    whole = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    monkeypatch.setattr("merging.checkpoint._parse_header", lambda file, path: whole)
    with pytest.raises(SourceError, match="changed while it was read"):
        read_tensors(path)
