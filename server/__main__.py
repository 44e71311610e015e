"""The command `mergeserve`. Each subcommand's work is in a module of `server.commands`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from server.commands.compare_arguments import add_compare_command
from server.commands.failure import MistakesError, fail
from server.commands.offline_arguments import add_offline_commands
from server.commands.parser import CommandParser
from server.commands.presets_arguments import add_presets_commands
from server.commands.serve_arguments import add_serve_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.check(arguments)
        # Imported here: serving needs torch, which takes seconds, and other commands need not wait.
        command = importlib.import_module(f"server.commands.{arguments.command}")
        code: int = command.run(arguments)
        sys.stdout.flush()
    except MistakesError as error:
        fail(arguments.command, error)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = CommandParser(
        prog="mergeserve",
        about="Serve merged language models live behind the OpenAI API.",
        example="mergeserve serve --demo\n"
        "mergeserve serve /models/base --source math=/adapters/math --source code=/adapters/code\n"
        "mergeserve presets set tutor math=0.6 code=0.4",
        usage="%(prog)s COMMAND [options]",
        epilog="`mergeserve COMMAND --help` tells more of each.",
    )
    parser.set_defaults(check=lambda arguments: None)
    parser.add_argument("--version", action="version", version=f"mergeserve {installed_version()}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog=parser.prog
    )
    add_serve_command(commands)
    add_offline_commands(commands)
    add_presets_commands(commands)
    add_compare_command(commands)
    return parser


def installed_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("mergeserve")
    except PackageNotFoundError:
        return "unknown (not installed)"


if __name__ == "__main__":
    sys.exit(main())
