"""`mergeserve inspect`: what a folder is, and what would be done with it as a source."""

import argparse
import sys
from pathlib import Path

from server.engine.errors import EngineError
from server.engine.loading import describe_base
from server.inspection import inspect_folder


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    try:
        base = None if arguments.model is None else describe_base(arguments.model)
    except EngineError as error:
        print(f"mergeserve inspect: {error}", file=sys.stderr)
        return 1
    print(inspect_folder(Path(arguments.folder), base))
    return 0
