"""`mergeserve inspect`: what a folder is and what would be done with it, or what a merge does."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from merging.adapter_export import write_adapter
from merging.checkpoint import checkpoint_digest
from merging.checkpoint_fit import under_base_names
from merging.checkpoint_weights import map_checkpoint, open_checkpoint
from merging.dense_to_lora import convert_to_lora
from merging.diagnosis import Diagnosis, GroupFigures
from merging.errors import MergingError, OutputError, SourceError
from merging.output_folder import output_folder
from merging.plan_diagnosis import diagnose_plan
from merging.wording import shown
from server.commands.failure import fail
from server.commands.logs import configure_logging
from server.commands.progress import ProgressReporter
from server.commands.table import table
from server.engine.errors import EngineError
from server.engine.loading import describe_base
from server.engine.model_files import model_folder
from server.inspection import inspect_folder, needs_digest
from server.offline.heat_map import number, page
from server.offline.opening import OpenBase, OpenMerge, open_base, open_recipe
from server.offline.recipe_file import read_recipe_file


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    try:
        if arguments.recipe is None:
            print(_inspect_folder(Path(arguments.folder), arguments))
        else:
            _inspect_recipe(arguments)
    except (MergingError, EngineError) as error:
        return fail("inspect", error)
    return 0


def _inspect_folder(folder: Path, arguments: argparse.Namespace) -> str:
    if arguments.html is not None or arguments.source:
        raise OutputError("--html and --source go with --recipe")
    if (arguments.to_lora is None) != (arguments.out is None):
        raise OutputError("--to-lora RANK and --out DIR go together")
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder")
    if arguments.to_lora is not None:
        return _to_lora(folder, arguments)
    if arguments.model is None:
        return inspect_folder(folder, None)
    base_folder = model_folder(arguments.model, lambda what, done, total: None)
    base = describe_base(arguments.model)
    if needs_digest(folder):
        base = replace(base, digest=checkpoint_digest(base_folder))
    mismatch = arguments.allow_base_mismatch

    def opened() -> OpenBase:  # an adapter on linear layers does not need the base's files
        weights = under_base_names(map_checkpoint(base_folder, base.digest), base)
        return OpenBase(arguments.model, base_folder, base, weights)

    return inspect_folder(
        folder,
        base,
        base_tensor=lambda name: opened().tensor(name),
        merge=lambda own: opened().adapters(allow_base_mismatch=mismatch).merge(own),
        resident=lambda: under_base_names(open_checkpoint(base_folder), base),
        allow_base_mismatch=arguments.allow_base_mismatch,
    )


def _to_lora(folder: Path, arguments: argparse.Namespace) -> str:
    """Write a dense delta as the closest LoRA of a rank; the share of it that is kept."""
    if arguments.model is None:
        raise OutputError("--to-lora needs the base: name it with --model")
    progress = ProgressReporter()
    try:
        base_folder = model_folder(arguments.model, progress)
        base = open_base(arguments.model, base_folder, None, progress)
        progress("merging with PEFT", 0, 0)
        adapters = base.adapters(allow_base_mismatch=arguments.allow_base_mismatch)
        overlay, _ = adapters.merge(folder)
        what = "singular values"
        converted = convert_to_lora(
            overlay, base.base, arguments.to_lora, lambda done, all: progress(what, done, all)
        )
        if not converted.adapter.factors:
            raise OutputError("it changes no linear layer: there is nothing that a LoRA could do")
        with output_folder(arguments.out) as out:
            write_adapter(out, converted.adapter, base.base, base_name=arguments.model)
    finally:
        progress.close()
    lost = f"; left out: {shown(converted.lost)}" if converted.lost else ""
    return (
        f"{arguments.out}: a LoRA of rank {converted.adapter.max_rank} keeps "
        f"{converted.share:.1%} of the delta (squared norm){lost}"
    )


def _inspect_recipe(arguments: argparse.Namespace) -> None:
    configure_logging("text")
    progress = ProgressReporter()
    try:
        merge = open_recipe(
            read_recipe_file(arguments.recipe),
            model=arguments.model,
            given=dict(arguments.source),
            seed=None,
            dtype=None,
            allow_base_mismatch=arguments.allow_base_mismatch,
            progress=progress,
        )
        diagnosis = diagnose_plan(
            merge.plan,
            merge.base.weights,
            progress=lambda done, total: progress("comparing deltas", done, total),
        )
    finally:
        progress.close()
    print(_report(merge, diagnosis))
    if arguments.html is not None:
        _write(arguments.html, merge, diagnosis)
        print(f"\nheat maps: {arguments.html}")


def _write(path: Path, merge: OpenMerge, diagnosis: Diagnosis) -> None:
    title = f"{merge.recipe.method} of {', '.join(merge.spellings.values()) or 'the base'}"
    text = page(diagnosis, title=title, subtitle=merge.plan.digest)
    try:
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(text, "utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _report(merge: OpenMerge, diagnosis: Diagnosis) -> str:
    """What the merge is, and a line for every group of tensors."""
    plan = merge.plan
    lines = [
        f"path      {plan.path}: {plan.reason}",
        f"digest    {plan.digest}",
        *(f"source    {name}: {text}" for name, text in merge.spellings.items()),
        *(f"warning   {warning}" for warning in merge.warnings),
        "",
        figures_table(diagnosis),
    ]
    return "\n".join(lines)


def figures_table(diagnosis: Diagnosis) -> str:
    """A row for every kind in every layer, and one for all together."""
    total = diagnosis.total
    header = ["LAYER", "KIND", "CHANGE"]
    header += [f"SHARE {source.name}" for source in total.sources]
    for pair in total.pairs:
        header += [f"COS {pair.first}/{pair.second}", f"CONFLICT {pair.first}/{pair.second}"]
    return table(header, [_row(group) for group in (*diagnosis.groups, total)])


def _row(group: GroupFigures) -> list[object]:
    pairs = [figure for p in group.pairs for figure in (p.cosine, p.sign_conflict)]
    figures = [group.relative_change, *(s.contribution for s in group.sources), *pairs]
    layer = "-" if group.layer is None else group.layer
    return [layer, group.kind, *(number(figure) for figure in figures)]
