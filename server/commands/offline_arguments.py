"""The command lines of `mergeserve merge`, `export` and `inspect`."""

import argparse
from pathlib import Path

from server.commands.arguments import add_settings

DTYPES = ("bfloat16", "float16", "float32")


def add_offline_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands that work without a server."""
    _add_merge(commands)
    _add_export(commands)
    _add_inspect(commands)


def parse_named_folder(text: str) -> tuple[str, str]:
    """Read `NAME=DIR_OR_HUB_ID`."""
    name, equals, location = text.partition("=")
    if not (name and equals and location):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR_OR_HUB_ID")
    return name, location


def parse_rank(text: str) -> int:
    """Read a positive integer."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    merge = commands.add_parser(
        "merge", help="merge models into a checkpoint, without a server", allow_abbrev=False
    )
    merge.add_argument(
        "recipe",
        metavar="RECIPE.yaml",
        type=Path,
        help="a mergekit configuration or a preset's document; its models are names of --source, "
        "paths or hub ids",
    )
    merge.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="a folder that is not there")
    _add_models(merge)
    merge.add_argument("--seed", metavar="N", type=int, help="of the methods that draw numbers")
    merge.add_argument("--dtype", choices=DTYPES, help="default: the recipe's, else the base's")


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="write a preset as a checkpoint, or as one adapter, and compare it with the live one",
        allow_abbrev=False,
    )
    export.add_argument("preset", metavar="PRESET", help="name, or NAME@REVISION")
    export.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="a folder that is not there")
    export.add_argument(
        "--as",
        dest="form",
        choices=("checkpoint", "adapter"),
        default="checkpoint",
        help="adapter: one PEFT LoRA of the summed rank, exactly (default: checkpoint)",
    )
    export.add_argument(
        "--url", help="a server on this machine that has the preset; else give the options of serve"
    )
    export.add_argument(
        "--rank", metavar="N", type=int, help="cut an adapter to this rank; its error is printed"
    )
    export.add_argument(
        "--uniform-rank",
        action="store_true",
        help="pad an adapter's modules with zeros to one rank",
    )
    export.add_argument(
        "--no-check", action="store_true", help="do not compare what was written with the live one"
    )
    add_settings(export)


def _add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what a source's folder is, or what a merge does, before serving it",
        allow_abbrev=False,
    )
    what = inspect.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "folder", metavar="DIR", nargs="?", help="folder of an adapter or a checkpoint"
    )
    what.add_argument(
        "--recipe", metavar="RECIPE.yaml", type=Path, help="a merge, as `mergeserve merge` takes it"
    )
    _add_models(inspect)
    inspect.add_argument(
        "--to-lora",
        metavar="RANK",
        type=parse_rank,
        help="with DIR and --model: write an adapter that PEFT has to merge as the closest LoRA",
    )
    inspect.add_argument("--out", metavar="OUT_DIR", type=Path, help="with --to-lora: where to")
    inspect.add_argument(
        "--html", metavar="FILE", type=Path, help="with --recipe: write heat maps by layer there"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", help="the base model")
    parser.add_argument(
        "--source",
        metavar="NAME=DIR_OR_HUB_ID[,parent=NAME]",
        type=parse_named_folder,
        action="append",
        default=[],
        help="a model that the recipe calls by this name, and the one that it is an adapter on; "
        "several times",
    )
    parser.add_argument(
        "--allow-base-mismatch",
        action="store_true",
        help="accept adapters that record another base's digest",
    )
