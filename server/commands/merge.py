"""`mergeserve merge`: a recipe in, a checkpoint out. No model is loaded; tensors are streamed."""

import argparse
import logging
import os
import time
from pathlib import Path

from merging.errors import MergingError
from merging.merged_checkpoint import write_checkpoint
from merging.output_folder import check_target, output_folder
from server.commands.failure import fail
from server.commands.interruption import stopping_cleanly
from server.commands.logs import configure_logging
from server.commands.progress import ProgressReporter
from server.engine.errors import EngineError
from server.engine.model_files import Progress
from server.offline.card import card_of
from server.offline.opening import OpenMerge, open_recipe
from server.offline.recipe_file import read_recipe_file

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Merge; every reason against it is a line, and nothing is written."""
    configure_logging("text")
    progress, started = ProgressReporter(), time.monotonic()
    try:
        check_target(arguments.out_dir)
        merge = open_recipe(
            read_recipe_file(arguments.recipe),
            model=arguments.model,
            given=dict(arguments.source),
            seed=arguments.seed,
            dtype=arguments.dtype,
            allow_base_mismatch=arguments.allow_base_mismatch,
            progress=progress,
        )
        for warning in merge.warnings:
            logger.warning("%s", warning)
        write_merge(merge, arguments.out_dir, progress)
    except (MergingError, EngineError) as error:
        return fail("merge", error)
    finally:
        progress.close()
    size = sum(path.stat().st_size for path in arguments.out_dir.glob("*.safetensors"))
    print(
        f"{arguments.out_dir}: {size / 1e6:.1f} MB in {merge.base.base.dtype}, "
        f"{time.monotonic() - started:.1f} s, {merge.plan.digest}"
    )
    return 0


def write_merge(merge: OpenMerge, target: Path, progress: Progress) -> None:
    """Write the checkpoint of a merge. Raises MergingError; then nothing is under `target`."""
    title = Path(os.path.abspath(target)).name
    with stopping_cleanly(), output_folder(target) as folder:
        write_checkpoint(
            merge.plan,
            merge.base.weights,
            merge.base.folder,
            folder,
            card=card_of(merge, title),
            chat_template=merge.chat_template,
            progress=lambda done, total: progress("merging", done, total),
        )
