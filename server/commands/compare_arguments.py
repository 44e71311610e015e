"""The command line of `mergeserve compare`."""

import argparse
from pathlib import Path

from server.commands.http_client import add_server_arguments
from server.commands.parser import CommandParser, Commands


def add_compare_command(commands: Commands) -> None:
    """Add `compare`."""
    commands.add_parser(
        "compare",
        help="compare a preset with its parts, or candidates, on prompts",
        about="Compare a preset with its parts, or candidates with a reference, on prompts.",
        example="mergeserve compare tutor --prompts held_out.jsonl --scorer exact --html r.html\n"
        "mergeserve compare tutor --prompts held_out.jsonl --candidate tutor,math=0.8,code=0.2",
        usage="%(prog)s PRESET --prompts FILE.jsonl [options]",
        fill=_fill,
    )


def _fill(compare: CommandParser) -> None:
    from server.commands.early import check_compare

    compare.set_defaults(check=check_compare)
    compare.add_argument(
        "preset",
        metavar="PRESET",
        help="its parts are compared, or it and each --candidate",
    )
    compare.add_argument(
        "--prompts",
        metavar="FILE.jsonl",
        type=Path,
        required=True,
        help='lines of {"prompt": ... or "messages": ..., "reference": ..., "tag": ...}',
    )
    _add_candidates(compare.add_argument_group("who is compared"))
    _add_scoring(compare.add_argument_group("how answers are judged"))
    _add_sampling(compare.add_argument_group("how answers are sampled"))
    written = compare.add_argument_group("what is written")
    for name, text in (("html", "a page"), ("markdown", "the report"), ("json", "every figure")):
        written.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write {text} there")
    add_server_arguments(compare, edits=False)


def _add_candidates(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--candidate",
        metavar="MODEL",
        action="append",
        default=[],
        help="tutor@3, tutor:ensemble, math, or a preset with weights that are not saved: "
        "tutor,math=0.8,code=0.2",
    )
    group.add_argument(
        "--reference",
        metavar="MODEL",
        help="the candidate that the others are held against (default: PRESET)",
    )


def _add_scoring(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--scorer",
        metavar="NAME",
        action="append",
        default=[],
        help="exact, contains, regex, number or json; TAG=NAME for the prompts of one tag",
    )
    group.add_argument(
        "--margin",
        metavar="X",
        type=float,
        help="how much worse is still good: a share of right answers, such as 0.1, or nats",
    )


def _add_sampling(group: "argparse._ArgumentGroup") -> None:
    for name, metavar, kind, default, text in (
        ("max-tokens", "N", int, 64, "longest answer, in tokens"),
        ("temperature", "T", float, 0.0, "0 takes the likeliest token"),
        ("seed", "N", int, 0, "seed of the answers that are drawn"),
        ("concurrency", "N", int, 8, "prompts at a time"),
    ):
        group.add_argument(
            f"--{name}",
            metavar=metavar,
            type=kind,
            default=default,
            help=f"{text} (default: {default:g})",
        )
