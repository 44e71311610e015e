"""A plan written as a checkpoint's folder, tensor by tensor."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue

from merging.blend import Blend
from merging.build import build
from merging.checkpoint import Progress
from merging.checkpoint_weights import CheckpointWeights, natural_order
from merging.checkpoint_writer import MAX_SHARD_BYTES, CheckpointWriter
from merging.companions import copy_companions, set_chat_template
from merging.dense import blended_modules, dense_weight
from merging.errors import OutputError, SourceError
from merging.file_names import file_name
from merging.layout import is_derived
from merging.model_config import merged_config
from merging.models import Models, Source
from merging.plan import Plan
from merging.safetensors_file import TensorSpec
from merging.source import Weights

CARD: Final = "README.md"
CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """What a merged checkpoint holds: `made` tensors, and those that are the base's own, by name.

    `layers`: for each layer the base's that it is built like. `is_tied`: whether its head is the
    embedding.
    """

    made: tuple[TensorSpec, ...]
    shared: Mapping[str, str]
    layers: tuple[int, ...]
    is_tied: bool


def write_checkpoint(
    plan: Plan,
    resident: Weights,
    base_folder: Path,
    folder: Path,
    *,
    card: str,
    chat_template: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the merged model of a plan into an empty `folder`: weights in `plan.base.dtype`,
    config.json, what goes with the tokenizer, `chat_template` (Jinja text) in place of the base's,
    and `card` as README.md.

    `resident` and `base_folder` are the base's tensors and its folder. `progress` hears of the
    bytes written. Raises OutputError if the base's folder has no config, PlanError if the weights
    are not finite, SourceError if a file that was read changed meanwhile, and OSError as the disk
    gives it.
    """
    models = Models(plan.base, resident, plan.sources)
    layout = checkpoint_layout(plan, models)
    config = _read_config(base_folder)
    merged = merged_config(
        config, dtype=plan.base.dtype, layers=layout.layers, is_tied=layout.is_tied
    )
    own = _specs(plan, models, layout)
    names = {spec.name: file_name(spec.name, resident, layout.layers) for spec in own}
    specs = [replace(spec, name=names[spec.name]) for spec in own]
    # First, since it takes all the room that it needs.
    writer = CheckpointWriter(folder, specs, max_shard_bytes=max_shard_bytes)
    (folder / CONFIG).write_text(json.dumps(merged, indent=2) + "\n")
    copy_companions(base_folder, folder)
    if chat_template is not None:
        set_chat_template(folder, chat_template)
    (folder / CARD).write_text(card)
    _write_tensors(plan, models, layout, writer, names, progress)
    _check_unchanged([resident, *plan.sources.values()])


def _check_unchanged(models: Sequence[Source]) -> None:
    """What was written is of the content whose digests the card has."""
    reasons: list[str] = []
    for model in models:
        try:
            if isinstance(model, CheckpointWeights):
                model.check_unchanged()
        except SourceError as error:
            reasons += error.reasons
    if reasons:
        raise SourceError(reasons)


def checkpoint_layout(plan: Plan, models: Models) -> CheckpointLayout:
    """Say which tensors a checkpoint of this plan holds."""
    dtype, variant = _dtype(plan.base.dtype), plan.variant
    if variant is not None:
        made = tuple(TensorSpec(t.name, dtype, t.shape) for t in variant.tensors)
        shared, layers = dict(variant.shared), variant.layers
    else:
        names = [f"{module}.weight" for module in blended_modules(plan.blend, plan.base)]
        made = tuple(TensorSpec(name, dtype, models.shapes[name]) for name in names)
        own = models.weights("base").shapes.items()
        shared = {n: n for n, shape in own if n not in names and not is_derived(n, shape)}
        layers = tuple(range(plan.base.num_layers))
    ties = plan.base.ties
    is_tied = plan.base.tied_embeddings and not any(spec.name in ties for spec in made)
    return CheckpointLayout(made, shared, layers, is_tied)


def _specs(plan: Plan, models: Models, layout: CheckpointLayout) -> list[TensorSpec]:
    """All tensors, in the model's order."""
    own = [_shared_spec(name, like, plan, models) for name, like in layout.shared.items()]
    return sorted([*layout.made, *own], key=lambda spec: natural_order(spec.name))


def _write_tensors(
    plan: Plan,
    models: Models,
    layout: CheckpointLayout,
    writer: CheckpointWriter,
    names: Mapping[str, str],
    progress: Progress | None,
) -> None:
    done, total = 0, writer.num_bytes

    def place(name: str) -> torch.Tensor:
        return writer.out(names[name])

    def report(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    for name, like in layout.shared.items():
        out = place(name)
        copy_tensor(models.weights("base").tensor(like), out, name)
        report(out.nbytes)
    if plan.variant is not None:
        before = done
        build(
            plan.variant,
            place,
            progress=lambda made, _: None if progress is None else progress(before + made, total),
        )
    else:
        _write_blend(plan.blend, models, layout, place, report)
    writer.flush()


def _write_blend(
    blend: Blend,
    models: Models,
    layout: CheckpointLayout,
    out: Callable[[str], torch.Tensor],
    report: Callable[[int], None],
) -> None:
    for spec in layout.made:
        weight = models.weights("base").tensor(models.tied.get(spec.name, spec.name))
        merged = dense_weight(blend, models.base, spec.name.removesuffix(".weight"), weight)
        copy_tensor(merged, out(spec.name), spec.name)
        report(spec.num_bytes)


def copy_tensor(tensor: torch.Tensor, out: torch.Tensor, name: str) -> None:
    """Copy a tensor into one of another dtype. Raises OutputError if that cannot hold it."""
    out.copy_(tensor)
    if out.is_floating_point() and not bool(torch.isfinite(out).all()):
        raise OutputError(
            f"{name} is not finite in {str(out.dtype).removeprefix('torch.')}: choose bfloat16 or "
            "float32 if it is in the base"
        )


def _shared_spec(name: str, like: str, plan: Plan, models: Models) -> TensorSpec:
    """Floating-point tensors take the dtype of the result, others keep theirs."""
    tensor = models.weights("base").tensor(like)
    dtype = _dtype(plan.base.dtype) if tensor.is_floating_point() else tensor.dtype
    return TensorSpec(name, dtype, tuple(tensor.shape))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _read_config(folder: Path) -> dict[str, JsonValue]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{folder / CONFIG} of the base cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise OutputError(f"{folder / CONFIG} of the base is not a JSON object")
    return config
