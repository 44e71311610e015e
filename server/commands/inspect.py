"""`mergeserve inspect`: what a folder is and what would be done with it, or what a merge does."""

import argparse
from pathlib import Path

from merging.errors import MergingError
from merging.regular_file import check_files
from server.commands.failure import fail
from server.commands.waiting import waiting
from server.engine.errors import EngineError
from server.inspection import inspect_folder


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    try:
        if arguments.recipe is not None:
            # Imported here, as below: transformers takes seconds, and an adapter alone needs none.
            from server.commands.inspect_recipe import print_report

            print_report(arguments)
            return 0
        check_files(Path(arguments.folder))
        if arguments.to_lora is not None:
            print(_to_lora(Path(arguments.folder), arguments))
        elif arguments.model is None:
            print(inspect_folder(Path(arguments.folder), None))
        else:
            print(_against_base(Path(arguments.folder), arguments))
    except (MergingError, EngineError) as error:
        return fail("inspect", error)
    return 0


def _against_base(folder: Path, arguments: argparse.Namespace) -> str:
    with waiting(f"reading {arguments.model}"):
        from server.commands.inspect_source import inspect_against

        return inspect_against(
            folder, arguments.model, allow_base_mismatch=arguments.allow_base_mismatch
        )


def _to_lora(folder: Path, arguments: argparse.Namespace) -> str:
    with waiting(f"reading {arguments.model}"):
        from server.commands.inspect_source import write_lora

    return write_lora(
        folder,
        arguments.model,
        arguments.to_lora,
        arguments.out,
        allow_base_mismatch=arguments.allow_base_mismatch,
    )
