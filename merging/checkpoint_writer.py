"""Writes the tensors of a checkpoint: safetensors, in shards with an index where they are large."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from merging.safetensors_file import SafetensorsFile, TensorSpec, asking_for

MAX_SHARD_BYTES: Final = 5_000_000_000
"""As transformers' save_pretrained."""

RELEASE_BYTES: Final = 1 << 28
"""What may be handed out before the pages that were written are given to the kernel."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class CheckpointWriter:
    """Space for `tensors` in a folder. `out` hands out each tensor to be written into, in any
    order and from any thread. `num_bytes` is what all of them take.

    Raises OSError if the disk has no room for all of them, with how much is needed and was free.
    """

    def __init__(
        self, folder: Path, tensors: Sequence[TensorSpec], *, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        shards = list(_shards(tensors, max_shard_bytes))
        names = _file_names(len(shards))
        self.num_bytes = sum(spec.num_bytes for spec in tensors)
        with asking_for(self.num_bytes, folder):
            self._files = [
                SafetensorsFile(folder / name, shard)
                for name, shard in zip(names, shards, strict=True)
            ]
        self._file_of = {
            spec.name: file
            for file, shard in zip(self._files, shards, strict=True)
            for spec in shard
        }
        self._handed_out = 0
        if len(shards) > 1:
            weight_map = {
                spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard
            }
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def out(self, name: str) -> torch.Tensor:
        """The tensor `name` of the file, in its own dtype and shape."""
        tensor = self._file_of[name].tensor(name)
        self._handed_out += tensor.nbytes
        if self._handed_out >= RELEASE_BYTES:
            self._handed_out = 0
            for file in self._files:
                file.release()
        return tensor

    def flush(self) -> None:
        """Put everything on the disk; raises OSError if that does not work."""
        for file in self._files:
            file.flush()


def _shards(tensors: Sequence[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    """Cut the list where the next tensor would not fit; one that is larger has a shard of its own.

    There is always one shard.
    """
    shard: list[TensorSpec] = []
    num_bytes = 0
    for spec in tensors:
        if shard and num_bytes + spec.num_bytes > max_bytes:
            yield shard
            shard, num_bytes = [], 0
        shard.append(spec)
        num_bytes += spec.num_bytes
    yield shard


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
