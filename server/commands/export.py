"""`mergeserve export`: a preset as a checkpoint or as one adapter, compared with the live merge."""

import argparse
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from merging.adapter_export import (
    ExportedAdapter,
    caveats,
    cut_rank,
    pad_rank,
    stack_blend,
    write_adapter,
)
from merging.errors import MergingError, OutputError
from merging.merged_checkpoint import CARD
from merging.output_folder import check_target, output_folder
from server.commands.failure import fail
from server.commands.http_client import default_url
from server.commands.interruption import stopping_cleanly
from server.commands.logs import configure_logging
from server.commands.merge import write_merge
from server.commands.progress import ProgressReporter
from server.engine.errors import EngineError
from server.engine.model_files import Progress, model_folder
from server.errors import ServiceError
from server.offline.card import base_hub_id, card_of
from server.offline.found_preset import find_in_settings
from server.offline.opening import OpenMerge, open_base, open_merge
from server.offline.remote_preset import base_location, find_on_server
from server.offline.scoring import compare_adapter, compare_checkpoint, score_live
from server.settings import Settings

logger = logging.getLogger(__name__)

NUM_WORST = 5


def run(arguments: argparse.Namespace) -> int:
    """Export; every reason against it is a line, and nothing is written."""
    settings: Settings = arguments.settings
    configure_logging(settings.log_format)
    progress = ProgressReporter()
    try:
        check_target(arguments.out_dir)
        merge = _open(arguments, settings, progress)
        for warning in merge.warnings:
            logger.warning("%s", warning)
        _export(merge, arguments, settings, progress)
    except (MergingError, EngineError, ServiceError) as error:
        return fail("export", error)
    finally:
        progress.close()
    return 0


def _open(arguments: argparse.Namespace, settings: Settings, progress: Progress) -> OpenMerge:
    name, revision = _name_and_revision(arguments.preset)
    if arguments.url is None and (settings.model is not None or settings.demo):
        found, spelling, folder = find_in_settings(settings, name, revision, progress)
    else:
        keys = [key.value for key in (*settings.admin_key, *settings.api_key)]
        url = arguments.url or default_url()
        found, root = find_on_server(url, name, revision, next(iter(keys), None))
        spelling = settings.model or base_location(url, root)
        folder = model_folder(spelling, progress).resolve()
    document = found.document.recipe()
    dtype = document.dtype if settings.dtype == "auto" else settings.dtype
    recipe = document.model_copy(update={"dtype": None})  # the base's is what is written
    base = open_base(spelling, folder, dtype, progress)
    registry = base.registry(
        allow_base_mismatch=settings.allow_base_mismatch, contents=found.contents
    )
    names = {source: source for source in recipe.models}
    merge = open_merge(
        recipe,
        base,
        found.folders,
        names,
        registry,
        progress,
        digests=found.digests,
        parents=found.parents,
    )
    found.check_digest({n: s.digest for n, s in merge.plan.sources.items()}, base.base)
    if found.document.mode == "ensemble":
        logger.warning("%s runs as an ensemble; what is written is its merge", found.label)
    return merge


def _name_and_revision(text: str) -> tuple[str, int | None]:
    name, at, revision = text.partition("@")
    if at and not revision.isdecimal():
        raise OutputError(f"{text!r} is not PRESET or PRESET@REVISION")
    return name, int(revision) if at else None


def _export(
    merge: OpenMerge, arguments: argparse.Namespace, settings: Settings, progress: Progress
) -> None:
    target, is_adapter = arguments.out_dir, arguments.form == "adapter"
    if is_adapter:
        for line in _write_adapter(merge, arguments, settings):
            print(line)
    else:
        write_merge(merge, target, progress)
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e6:.1f} MB, {merge.plan.digest}")
    if arguments.no_check:
        return
    progress("scoring the live merge", 0, 0)
    live = score_live(merge.base.folder, merge.plan, settings.device)
    gc.collect()  # the engine is gone; what was written needs the room
    progress("scoring what was written", 0, 0)
    if is_adapter:
        comparison = compare_adapter(live, target, merge.base.folder)
    else:
        comparison = compare_checkpoint(live, target)
    print(comparison.text())
    if merge.base.base.dtype != "float32" and not is_adapter:
        print("(computed in float32; --dtype float32 writes weights without rounding)")


def _write_adapter(
    merge: OpenMerge, arguments: argparse.Namespace, settings: Settings
) -> list[str]:
    """Write a blend as an adapter; returns what is to be said of it."""
    plan, base = merge.plan, merge.base.base
    if plan.variant is not None:
        raise OutputError(f"{plan.reason}: that is no adapter, export it as a checkpoint")
    adapter = stack_blend(plan.blend, base)
    if arguments.rank is not None:
        adapter = cut_rank(adapter, arguments.rank)
    if arguments.uniform_rank:
        adapter = pad_rank(adapter)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    lines = [*_errors(adapter), *caveats(adapter, base)]
    title = Path(os.path.abspath(arguments.out_dir)).name
    with stopping_cleanly(), output_folder(arguments.out_dir) as folder:
        card = card_of(merge, title, library="peft", dtype=dtype, notes=lines)
        (folder / CARD).write_text(card)
        write_adapter(
            folder,
            adapter,
            base,
            base_name=base_hub_id(merge),
            dtype=getattr(torch, dtype),
        )
    return lines


def _errors(adapter: ExportedAdapter) -> Iterator[str]:
    """How much a cut to a smaller rank lost: the worst modules, and in all."""
    if not adapter.errors:
        return
    worst = sorted(adapter.errors.items(), key=lambda item: -item[1])[:NUM_WORST]
    yield (
        f"it was cut to rank {adapter.max_rank}, which loses {adapter.error:.2%} of the delta's "
        f"norm; most in {', '.join(f'{module} {error:.2%}' for module, error in worst)}"
    )
