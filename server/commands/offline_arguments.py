"""The command lines of `mergeserve merge`, `export` and `inspect`."""

import argparse
from pathlib import Path

from server.commands.http_client import DEFAULT_URL
from server.commands.option_groups import EXPORT
from server.commands.parser import CommandParser, Commands

DTYPES = ("bfloat16", "float16", "float32")


def add_offline_commands(commands: Commands) -> None:
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


def _add_merge(commands: Commands) -> None:
    commands.add_parser(
        "merge",
        help="merge models into a checkpoint, without a server",
        about="Merge models into a checkpoint, without a server and without loading a model.",
        example="mergeserve merge recipe.yaml OUT --model /models/base --source math=/math",
        usage="%(prog)s RECIPE.yaml OUT_DIR [options]",
        fill=_fill_merge,
    )


def _fill_merge(merge: CommandParser) -> None:
    from server.commands.early import check_merge

    merge.set_defaults(check=check_merge)
    merge.add_argument(
        "recipe",
        metavar="RECIPE.yaml",
        type=Path,
        help="a mergekit configuration or a preset's document; its models are names of --source, "
        "paths or hub ids",
    )
    merge.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="a folder that is not there")
    _add_models(merge)
    written = merge.add_argument_group("what is written")
    written.add_argument(
        "--dtype",
        metavar="|".join(DTYPES),
        choices=DTYPES,
        help="type of the weights (default: the recipe's, else the base's)",
    )
    written.add_argument(
        "--seed",
        metavar="N",
        type=int,
        help="seed of the methods that draw random numbers (default: the recipe's, else 0)",
    )


def _add_export(commands: Commands) -> None:
    commands.add_parser(
        "export",
        help="write a preset as a checkpoint or as one adapter",
        about="Write a preset as a checkpoint or one adapter, and compare it with the live merge.",
        example="mergeserve export tutor OUT --as adapter --url http://127.0.0.1:8000\n"
        "mergeserve export tutor@3 OUT --model /models/base --source math=/adapters/math",
        usage="%(prog)s PRESET[@REVISION] OUT_DIR [options]",
        fill=_fill_export,
    )


def _fill_export(export: CommandParser) -> None:
    from server.commands.arguments import add_settings
    from server.commands.early import check_export

    export.set_defaults(check=check_export)
    export.add_argument("preset", metavar="PRESET", help="name, or NAME@REVISION")
    export.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="a folder that is not there")
    _add_form(export.add_argument_group("what is written"))
    export.add_argument_group("from a server on this machine").add_argument(
        "--url",
        metavar="URL",
        help=f"default, without --model and --demo: MERGESERVE_URL, else {DEFAULT_URL}",
    )
    add_settings(export, shown=EXPORT, positional=False)
    export.epilog = (
        "Without a server, give what `mergeserve serve` was given; every option of it is taken."
    )


def _add_form(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        choices=("checkpoint", "adapter"),
        default="checkpoint",
        help="checkpoint (default), or adapter: one exact LoRA of the summed rank",
    )
    group.add_argument(
        "--rank", metavar="N", type=int, help="cut an adapter to this rank; its error is printed"
    )
    group.add_argument(
        "--uniform-rank",
        action="store_true",
        help="pad an adapter's modules with zeros to one rank",
    )
    group.add_argument(
        "--no-check", action="store_true", help="do not compare what was written with the live one"
    )


def _add_inspect(commands: Commands) -> None:
    commands.add_parser(
        "inspect",
        help="say what a source's folder is, or what a merge does",
        about="Say what a source's folder is, or what a merge does, before serving it.",
        example="mergeserve inspect /adapters/math --model /models/base\n"
        "mergeserve inspect --recipe recipe.yaml --html merge.html",
        usage="%(prog)s (DIR | --recipe RECIPE.yaml) [options]",
        fill=_fill_inspect,
    )


def _fill_inspect(inspect: CommandParser) -> None:
    from server.commands.early import check_inspect

    inspect.set_defaults(check=check_inspect)
    what = inspect.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "folder", metavar="DIR", nargs="?", help="folder of an adapter or a checkpoint"
    )
    what.add_argument(
        "--recipe", metavar="RECIPE.yaml", type=Path, help="a merge, as `mergeserve merge` takes it"
    )
    _add_models(inspect)
    lora = inspect.add_argument_group("an adapter that PEFT has to merge, as a LoRA")
    lora.add_argument(
        "--to-lora",
        metavar="RANK",
        type=parse_rank,
        help="with DIR and --model: write the closest LoRA of this rank",
    )
    lora.add_argument("--out", metavar="OUT_DIR", type=Path, help="with --to-lora: where to")
    shown = inspect.add_argument_group("what is shown of a merge")
    shown.add_argument(
        "--all", action="store_true", help="a row for every kind of tensor in every layer"
    )
    shown.add_argument(
        "--html", metavar="FILE", type=Path, help="write the same as heat maps by layer there"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument("--model", metavar="DIR_OR_HUB_ID", help="the base model")
    models.add_argument(
        "--source",
        metavar="NAME=MODEL[,parent=NAME]",
        type=parse_named_folder,
        action="append",
        default=[],
        help="a folder or hub id that the recipe calls by this name; several times",
    )
    models.add_argument(
        "--allow-base-mismatch",
        action="store_true",
        help="accept adapters that record another base's digest",
    )
