"""The deltas of a planned merge, tensor by tensor, for its diagnosis."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from merging.base import locate
from merging.build import build
from merging.checkpoint import Progress
from merging.checkpoint_writer import CheckpointWriter
from merging.dense import blended_modules, dense_weight
from merging.diagnosis import Deltas, Diagnosis, diagnose
from merging.errors import OutputError
from merging.models import Models
from merging.plan import Plan
from merging.safetensors_file import TensorSpec
from merging.source import AdapterDeltas, Weights
from merging.variant import TensorPlan, VariantPlan


def diagnose_plan(
    plan: Plan, resident: Weights, *, scratch: Path | None = None, progress: Progress | None = None
) -> Diagnosis:
    """The figures of a planned merge, computed in float32; `resident` has the base's tensors.

    Deltas are relative to the recipe's base_model, or to the resident base where it has none. A
    variant is built in a file of a temporary folder inside `scratch` (the system's if None), so
    that memory holds one tensor of each model. `progress` hears of elements done and in all.

    Raises PlanError as `build` does, and OutputError if there is no room for that file.
    """
    models = Models(plan.base, resident, plan.sources)
    if plan.variant is None:
        names = [f"{module}.weight" for module in blended_modules(plan.blend, plan.base)]
        report = _reporter(progress, sum(math.prod(models.shapes[name]) for name in names))
        return diagnose(_of_blend(plan, models, names), sorted(plan.adapters), report)
    variant = replace(plan.variant, dtype="float32")
    try:
        with TemporaryDirectory(dir=scratch, prefix="mergeserve-") as folder:
            specs = [TensorSpec(t.name, torch.float32, t.shape) for t in variant.tensors]
            writer = CheckpointWriter(Path(folder), specs)
            build(variant, writer.out)
            report = _reporter(progress, sum(math.prod(t.shape) for t in variant.tensors))
            return diagnose(_of_variant(variant, models, writer.out), _sources(variant), report)
    except OSError as error:
        raise OutputError(f"the merge cannot be built in a temporary file: {error}") from error


def _of_blend(plan: Plan, models: Models, names: Sequence[str]) -> Iterator[Deltas]:
    for name in names:
        weight = models.weights("base").tensor(models.tied.get(name, name)).float()
        merged = dense_weight(plan.blend, plan.base, name.removesuffix(".weight"), weight)
        of_sources = {
            source: deltas.delta(name, weight)
            for source, adapter in plan.adapters.items()
            if (deltas := AdapterDeltas(adapter, plan.base)).touches(name)
        }
        yield Deltas(name, weight, of_sources, merged - weight)


def _sources(variant: VariantPlan) -> list[str]:
    """The sources that can differ from what deltas are relative to."""
    return sorted(
        name
        for name, source in variant.sources.items()
        if source.kind == "adapter" or source.digest != variant.resident.digest
    )


def _of_variant(
    variant: VariantPlan, models: Models, merged: Callable[[str], torch.Tensor]
) -> Iterator[Deltas]:
    for tensor in variant.tensors:
        weight = _reference(tensor, variant, models).float()
        of_sources = {
            i.source: variant.sources[i.source].delta(i.tensor, weight)
            for i in tensor.ingredients
            if variant.sources[i.source].touches(i.tensor)
        }
        yield Deltas(tensor.name, weight, of_sources, merged(tensor.name) - weight)


def _reference(tensor: TensorPlan, variant: VariantPlan, models: Models) -> torch.Tensor:
    """What a tensor's deltas are relative to."""
    if tensor.base is not None:
        return variant.base.tensor(tensor.base)
    place = locate(tensor.name)
    like = tensor.name if place is None else place.at(variant.layers[place.layer])
    return variant.resident.tensor(models.tied.get(like, like))


def _reporter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def report(num_elements: int) -> None:
        nonlocal done
        done += num_elements
        if progress is not None:
            progress(done, total)

    return report
