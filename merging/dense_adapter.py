"""An adapter whose delta is dense, before it is merged: what it is, and its identity."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.adapter_config import endless_patterns, read_config
from merging.adapter_files import recorded_digest, weights_file
from merging.checkpoint import read_header, read_tensors
from merging.digest import content_digest, json_digest
from merging.errors import SourceError

FORMAT = 1
"""Of what is made of an adapter: another one makes other digests."""

INERT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Fields that change nothing at inference."""


@dataclass(frozen=True, slots=True)
class DenseAdapter:
    """A PEFT folder that PEFT has to merge. `reasons`: why."""

    path: Path
    reasons: tuple[str, ...]
    content: str
    base_name: str | None
    base_digest: str | None

    def digest_on(self, start: str) -> str:
        """Of its content merged onto weights of the digest `start`."""
        return json_digest(["dense", FORMAT, self.content, start])


def read_dense_adapter(folder: Path, reasons: tuple[str, ...]) -> DenseAdapter:
    """Read a folder for which there are `reasons` why its delta is dense.

    Raises SourceError if a file cannot be read, or should not be given to PEFT.
    """
    config, path = read_config(folder), weights_file(folder)
    if problems := [*config.refusals.values(), *endless_patterns(config)]:
        raise SourceError(problems)
    return DenseAdapter(
        path=folder,
        reasons=reasons,
        content=_content(path, config.fields),
        base_name=config.base_name,
        base_digest=recorded_digest(read_header(path)),
    )


def _content(path: Path, fields: Mapping[str, object]) -> str:
    _, tensors = read_tensors(path)
    digests = {name: content_digest(tensor) for name, tensor in tensors.items()}
    return json_digest([digests, {k: v for k, v in fields.items() if k not in INERT}])
