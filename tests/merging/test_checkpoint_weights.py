"""Full checkpoints, mapped: their tensors, their digest, and files that change behind them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.checkpoint import checkpoint_digest
from merging.checkpoint_weights import natural_order, open_checkpoint
from merging.errors import SourceError

TENSORS = {
    "model.layers.10.w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "model.layers.2.w": torch.arange(4, dtype=torch.bfloat16),
    "model.embed.weight": torch.randn(3, 2).half(),
    "model.norm.weight": torch.empty(0, 3),
    "scalar": torch.tensor(7),
}


def single(folder: Path) -> Path:
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir()
    names = sorted(TENSORS)
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, own in shards.items():
        save_file({name: TENSORS[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("write", [single, sharded])
def test_tensors_are_those_of_the_files(write: object, tmp_path: Path) -> None:
    """Every tensor in its own dtype and shape, from one file or from shards, with one digest."""
    folder = write(tmp_path / "it")  # type: ignore[operator]
    weights = open_checkpoint(folder)
    assert weights.digest == checkpoint_digest(folder)
    assert weights.num_bytes == sum(tensor.nbytes for tensor in TENSORS.values())
    for name, tensor in TENSORS.items():
        own = weights.tensor(name)
        assert weights.shapes[name] == tuple(tensor.shape)
        assert own.dtype == tensor.dtype
        assert own.equal(tensor)


def test_shapes_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    """Layer 2 is before layer 10."""
    names = list(open_checkpoint(single(tmp_path / "it")).shapes)
    assert names == sorted(TENSORS, key=natural_order)
    assert names.index("model.layers.2.w") < names.index("model.layers.10.w")


def test_tensors_are_views_and_files_stay_as_they_are(tmp_path: Path) -> None:
    """A tensor is the mapped file: no copy. A stray write changes no file."""
    folder = single(tmp_path / "it")
    before = (folder / "model.safetensors").read_bytes()
    weights = open_checkpoint(folder)
    name = "model.layers.10.w"
    assert weights.tensor(name).data_ptr() == weights.tensor(name).data_ptr()
    weights.tensor(name).zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_read_only_file_is_enough(tmp_path: Path) -> None:
    """Files are opened for reading alone."""
    folder = single(tmp_path / "it")
    (folder / "model.safetensors").chmod(0o444)
    assert open_checkpoint(folder).tensor("scalar") == 7


def test_a_tensor_that_lies_unaligned_is_copied(tmp_path: Path) -> None:
    """A float32 tensor may lie behind three single bytes."""
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    values = torch.tensor([1.5, -2.0])
    data = len(text).to_bytes(8, "little") + text + b"\1\2\3" + values.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(data)
    assert open_checkpoint(tmp_path).tensor("b").equal(values)


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    """It is told of the bytes hashed."""
    heard: list[tuple[int, int]] = []
    weights = open_checkpoint(single(tmp_path / "it"), lambda *pair: heard.append(pair))
    assert heard[-1] == (weights.num_bytes, weights.num_bytes)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def grow(path: Path) -> None:
    stat = path.stat()
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("change", [touch, grow, replace])
def test_a_changed_file_is_noticed(change: object, tmp_path: Path) -> None:
    """By its time, its size or its inode; the other shard is still read."""
    folder = sharded(tmp_path / "it")
    weights = open_checkpoint(folder)
    weights.check_unchanged()
    changed, other = sorted(folder.glob("*.safetensors"))
    change(changed)  # type: ignore[operator]
    with pytest.raises(SourceError, match=r"model-1\.safetensors changed"):
        weights.check_unchanged()
    gone = [name for name, entry in weights.entries.items() if entry.path == changed]
    with pytest.raises(SourceError, match="register the folder again"):
        weights.tensor(gone[0])
    weights.tensor(next(name for name in weights.shapes if name not in gone))
    other.unlink()
    with pytest.raises(SourceError) as error:
        weights.check_unchanged()
    assert len(error.value.reasons) == 2
    assert "model-2.safetensors cannot be read: No such file" in error.value.reasons[1]


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path) -> None:
    """Its digest could be that of neither content."""
    folder = single(tmp_path / "it")
    with pytest.raises(SourceError, match="changed"):
        open_checkpoint(folder, lambda done, total: touch(folder / "model.safetensors"))


def test_pickle_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    """By name, with the way out."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="pickle"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match="has no tensor named nothing"):
        open_checkpoint(single(tmp_path / "it")).tensor("nothing")
