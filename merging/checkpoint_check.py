"""Whether a checkpoint is a fine-tune of this base: from headers and configs, before any merge."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from merging.base import Base, split_layer
from merging.checkpoint import TensorEntry, tensor_entries
from merging.checkpoint_weights import CheckpointWeights
from merging.config_check import Config, config_reason, config_warnings
from merging.errors import SourceError
from merging.layout import is_derived
from merging.wording import grouped, shown

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""safetensors' names of the element types that weights can be merged from."""

QUANTISED = "F8_"
"""How the names of the float types begin that mean nothing without scales beside them."""


def check_checkpoint(
    checkpoint: CheckpointWeights,
    base: Base,
    resident: CheckpointWeights,
    alignable: Collection[str] = (),
) -> list[str]:
    """Check that a checkpoint has the base's tensors, and return warnings.

    Both are under the model's names; `resident` are the base's own files. Only headers and configs
    are read. The tensors `alignable` may have another number of rows: a recipe can align them.

    Raises SourceError with every reason: tensors that are missing or unexpected, of another shape,
    of a type that is no plain float, another vocabulary, tied against untied heads, a config that
    computes something else with the same weights.
    """
    reasons = [
        *_config_reasons(checkpoint.folder, resident.folder),
        *_head_reasons(checkpoint, base, resident),
        *_name_reasons(checkpoint, base, resident),
        *grouped(_tensor_problems(checkpoint, resident, alignable)),
    ]
    if reasons:
        raise SourceError(reasons)
    return list(_warnings(checkpoint, resident))


def check_base(folder: Path) -> None:
    """Check, by its headers and its config, that a base's weights are no quantised ones.

    Raises SourceError with every reason, or because the folder cannot be read.
    """
    entries = tensor_entries(folder)
    reasons = list(grouped(_quantised(entries)))
    if (quantisation := _config(folder).get("quantization_config")) is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        kind = "" if method is None else f" of {method}"
        reasons.append(
            f"its config.json has a quantization_config{kind}, and quantised weights are not "
            "merged: dequantise it first"
        )
    if reasons:
        raise SourceError([f"the base {folder}: {reason}" for reason in reasons])


def _quantised(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str]]:
    """The tensors that are no numbers by themselves: (name, problem)."""
    for name, entry in entries.items():
        if entry.dtype.startswith(QUANTISED):
            yield name, f"is {entry.dtype}, which is not merged: dequantise it first"


def _head(base: Base) -> str | None:
    """The name of the head's weight."""
    outside = [module for module in base.linears if split_layer(module)[0] is None]
    return f"{outside[-1]}.weight" if outside else None


def _head_reasons(
    checkpoint: CheckpointWeights, base: Base, resident: CheckpointWeights
) -> Iterator[str]:
    head = _head(base)
    if head is None or (head in checkpoint.shapes) == (head in resident.shapes):
        return
    if head in resident.shapes:
        yield (
            f"it has no {head}, so its head is tied to its embedding, and the base's is not: "
            "untie it where it was trained, and save it again"
        )
    else:
        yield (
            f"it has a head of its own, {head}, and the base's is tied to its embedding: tie it "
            "where it was trained, and save it again"
        )


def _name_reasons(
    checkpoint: CheckpointWeights, base: Base, resident: CheckpointWeights
) -> Iterator[str]:
    head = _head(base)
    missing = [
        name
        for name, shape in resident.shapes.items()
        if name not in checkpoint.shapes and name != head and not is_derived(name, shape)
    ]
    if missing:
        yield f"it lacks {len(missing)} tensors of the base: {shown(missing)}"
    unexpected = [n for n in _extra(checkpoint, resident) if n != head and _is_float(checkpoint, n)]
    if unexpected:
        yield f"it has {len(unexpected)} tensors that the base has not: {shown(unexpected)}"


def _extra(checkpoint: CheckpointWeights, resident: CheckpointWeights) -> list[str]:
    """The tensors that the base lacks, but for those that are computed again on loading."""
    shapes = checkpoint.shapes.items()
    return [n for n, shape in shapes if n not in resident.shapes and not is_derived(n, shape)]


def _is_float(weights: CheckpointWeights, name: str) -> bool:
    return weights.entries[name].dtype in FLOATS


def _tensor_problems(
    checkpoint: CheckpointWeights, resident: CheckpointWeights, alignable: Collection[str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with tensors that both have, or that are quantised: (name, problem)."""
    yield from _quantised(checkpoint.entries)
    for name, expected in resident.shapes.items():
        shape = checkpoint.shapes.get(name)
        if shape is None:
            continue
        is_alignable = name in alignable and shape[1:] == expected[1:]
        if shape != expected and not is_alignable:
            yield name, _shape_problem(name, shape, expected)
        dtype = checkpoint.entries[name].dtype
        is_packed = dtype not in FLOATS and not dtype.startswith(QUANTISED)
        if is_packed and _is_float(resident, name):
            yield name, f"is {dtype}, which is not merged: save it in a float type, dequantised"


def _shape_problem(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    both_matrices = len(shape) == len(expected) == 2
    if both_matrices and shape[1] == expected[1] and split_layer(name)[0] is None:
        return (
            f"it has another vocabulary, {shape[0]} rows, and the base has {expected[0]}: train "
            "without adding tokens, or take them out"
        )
    return f"it has shape {list(shape)}, the base has {list(expected)}"


def _config_reasons(folder: Path, resident: Path) -> Iterator[str]:
    configs = [_config(path) for path in (folder, resident)]
    own, base = (config.get("model_type") for config in configs)
    if own is not None and base is not None and own != base:
        yield f"its architecture is {own!r}, and the base's is {base!r}"
    elif reason := config_reason(*configs):
        yield reason


def _warnings(checkpoint: CheckpointWeights, resident: CheckpointWeights) -> Iterator[str]:
    yield from config_warnings(_config(checkpoint.folder), _config(resident.folder))
    buffers = [n for n in _extra(checkpoint, resident) if not _is_float(checkpoint, n)]
    if buffers:
        yield f"{shown(buffers)} are no weights, and are left out"


def _config(folder: Path) -> Config:
    """The folder's config.json; empty if there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
