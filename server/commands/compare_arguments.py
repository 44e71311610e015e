"""The command line of `mergeserve compare`."""

import argparse
from pathlib import Path

from server.commands.http_client import add_server_arguments


def add_compare_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `compare`."""
    compare = commands.add_parser(
        "compare",
        help="compare a preset with its parts, or candidates with a reference, on prompts",
        allow_abbrev=False,
    )
    compare.add_argument(
        "preset",
        metavar="PRESET",
        help="without --candidate its base, sources, merge, ensemble, route and previous revision "
        "are compared; with it, it is the first candidate and the reference",
    )
    compare.add_argument(
        "--prompts",
        metavar="FILE.jsonl",
        type=Path,
        required=True,
        help='lines of {"prompt": ... or "messages": ..., "reference": ..., "tag": ...}',
    )
    compare.add_argument(
        "--candidate", metavar="MODEL", action="append", default=[], help="several times"
    )
    compare.add_argument(
        "--reference", metavar="MODEL", help="the candidate that the others are held against"
    )
    compare.add_argument(
        "--scorer",
        metavar="NAME",
        action="append",
        default=[],
        help="exact, contains, regex, number or json; TAG=NAME for the prompts of one tag",
    )
    compare.add_argument(
        "--margin",
        metavar="X",
        type=float,
        help="how much worse still counts as good: a share of right answers, or nats per token",
    )
    compare.add_argument("--max-tokens", metavar="N", type=int, default=64)
    compare.add_argument("--temperature", metavar="T", type=float, default=0.0)
    compare.add_argument("--seed", metavar="N", type=int, default=0)
    compare.add_argument(
        "--concurrency", metavar="N", type=int, default=8, help="prompts at a time (default: 8)"
    )
    for name in ("html", "markdown", "json"):
        compare.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write {name} there")
    add_server_arguments(compare, edits=False)
