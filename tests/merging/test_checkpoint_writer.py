"""Checkpoints are safetensors that others read, and are written in place."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from merging.checkpoint import read_tensors, tensor_entries
from merging.checkpoint_writer import CheckpointWriter
from merging.safetensors_file import SafetensorsFile, TensorSpec

SPECS = [
    TensorSpec("embed", torch.bfloat16, (3, 5)),
    TensorSpec("odd", torch.uint8, (3,)),
    TensorSpec("scalar", torch.float32, ()),
    TensorSpec("empty", torch.float32, (0, 4)),
    TensorSpec("wide", torch.float64, (2,)),
    TensorSpec("flag", torch.bool, (1,)),
]


def values(spec: TensorSpec) -> torch.Tensor:
    torch.manual_seed(len(spec.name))
    return (torch.randn(spec.shape) * 3).abs().to(spec.dtype)


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    """Every dtype and shape, in the file's own names, with metadata; our reader agrees."""
    file = SafetensorsFile(tmp_path / "x.safetensors", SPECS, {"format": "pt", "who": "é"})
    for spec in SPECS:
        file.tensor(spec.name).copy_(values(spec))
    file.flush()
    found = load_file(tmp_path / "x.safetensors")
    _, ours = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == ours.keys() == {spec.name for spec in SPECS}
    for spec in SPECS:
        assert found[spec.name].dtype == spec.dtype
        assert torch.equal(found[spec.name], values(spec))
        assert torch.equal(ours[spec.name], values(spec))
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "who": "é"}
    length = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert length % 8 == 0


def test_a_tensor_can_be_written_in_parts(tmp_path: Path) -> None:
    """What is handed out twice is the same memory, also after its pages were released."""
    spec = TensorSpec("x", torch.float32, (4, 6))
    file = SafetensorsFile(tmp_path / "x", [spec])
    file.tensor("x").T[:3] = 1.0
    file.release()
    file.tensor("x")[:, 3:] = 2.0
    file.flush()
    expected = torch.tensor([1.0] * 3 + [2.0] * 3).expand(4, 6)
    assert torch.equal(load_file(tmp_path / "x")["x"], expected)


def test_shards(tmp_path: Path) -> None:
    """No shard is larger than asked, unless one tensor is; the index has every tensor and the size,
    and transformers' names.
    """
    specs = [TensorSpec(f"t{i}", torch.float32, (n,)) for i, n in enumerate((2, 2, 3, 9, 1, 1))]
    writer = CheckpointWriter(tmp_path, specs, max_shard_bytes=20)
    for spec in reversed(specs):
        writer.out(spec.name).fill_(float(spec.name[1:]))
    writer.flush()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 72}
    numbers = [int(name[6:11]) for name in index["weight_map"].values()]
    assert numbers == [1, 1, 2, 3, 4, 4]
    assert set(index["weight_map"].values()) == {
        f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)
    }
    for name, file in index["weight_map"].items():
        assert torch.equal(
            load_file(tmp_path / file)[name], torch.full_like(writer.out(name), float(name[1:]))
        )
    assert set(tensor_entries(tmp_path)) == {spec.name for spec in specs}


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    """As transformers writes it; also a model without tensors is one file."""
    CheckpointWriter(tmp_path, SPECS).flush()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_disk_without_room_is_found_at_once(tmp_path: Path) -> None:
    """Before anything is computed, by an error and not by a signal."""
    with pytest.raises(OSError, match=r"space|large"):
        CheckpointWriter(tmp_path, [TensorSpec("x", torch.float32, (2**55,))])


def test_memory_does_not_grow_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that were written are given to the kernel on the way, and lose nothing."""
    monkeypatch.setattr("merging.checkpoint_writer.RELEASE_BYTES", 1 << 22)
    specs = [TensorSpec(f"t{i}", torch.uint8, (1 << 20,)) for i in range(64)]
    writer = CheckpointWriter(tmp_path, specs, max_shard_bytes=1 << 24)
    before, peak = resident_bytes(), 0
    for spec in specs:
        writer.out(spec.name).fill_(int(spec.name[1:]))
        peak = max(peak, resident_bytes())
    assert peak - before < 16 << 20
    assert all(int(writer.out(spec.name)[-1]) == int(spec.name[1:]) for spec in specs)


def resident_bytes() -> int:
    """Of this process, shared pages of files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
