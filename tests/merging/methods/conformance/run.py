"""Run cases through mergekit in its own Python."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.merging.methods.conformance.grid import Case

ORACLE = Path(__file__).with_name("oracle.py")


def merge_by_mergekit(
    python: str, cases: Sequence[Case], tensors: Mapping[str, torch.Tensor], folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What mergekit makes of the cases, and what it raises, by the case's id."""
    files = [folder / name for name in ("cases.json", "in.safetensors", "out.safetensors")]
    files[0].write_text(json.dumps([case.json() for case in cases]))
    save_file(dict(tensors), files[1])
    subprocess.run([python, str(ORACLE), *map(str, files)], check=True)
    with safe_open(files[2], "pt") as out:
        merged = {name: out.get_tensor(name) for name in out.keys()}  # noqa: SIM118
        return merged, dict(out.metadata() or {})
