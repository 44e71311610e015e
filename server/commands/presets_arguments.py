"""The command line of `mergeserve presets`."""

import argparse

from server.commands.http_client import add_server_arguments
from server.commands.parser import Commands


def add_presets_commands(commands: Commands) -> None:
    """Add `presets` and its subcommands."""
    presets = commands.add_parser(
        "presets",
        help="create, read and edit the presets of a running server",
        about="Create, read and edit the presets of a running server.",
        example="mergeserve presets set tutor math=0.6 code=0.4   # creates it, or edits it\n"
        "mergeserve presets explain tutor\n"
        "mergeserve presets rollback tutor 1",
        usage="%(prog)s ACTION [options]",
        epilog="`mergeserve presets ACTION --help` tells more of each.",
    )
    actions = presets.add_subparsers(
        dest="action", metavar="ACTION", required=True, prog=presets.prog
    )
    _add(actions, "list", "list presets and what they serve", "")
    _named(_add(actions, "show", "show one preset", "NAME[@REVISION]"))
    _add_explain(actions)
    _add_creating(actions)
    _named(_add(actions, "history", "list the revisions of a preset", "NAME"))
    rollback = _named(_add(actions, "rollback", "return to an old revision", "NAME REVISION"))
    rollback.add_argument(
        "revision", metavar="REVISION", type=int, help="a number that `history` lists"
    )
    delete = _named(_add(actions, "delete", "delete a preset and its revisions", "NAME"))
    for editing in (rollback, delete):
        _add_message(editing)


def _add_explain(actions: Commands) -> None:
    explain = _named(
        _add(actions, "explain", "say what a preset resolves to, and why", "NAME[@REVISION]")
    )
    explain.add_argument(
        "--no-interference",
        action="store_true",
        help="do not compare the sources' deltas, which reads all their tensors",
    )
    explain.add_argument("--json", action="store_true", help="print all that the server says")


def _add_creating(actions: Commands) -> None:
    """`create` and `set` take the same; `set` keeps what is not given."""
    texts = {
        "create": "create a preset; an error if it exists",
        "set": "change a preset, or create it; what is not given stays",
    }
    for name, text in texts.items():
        parser = _named(_add(actions, name, text, "NAME [SOURCE=WEIGHT ...]"))
        parser.add_argument(
            "weights",
            metavar="SOURCE=WEIGHT",
            nargs="*",
            help="a number, or numbers with commas between them for a gradient over the layers",
        )
        parser.add_argument(
            "--method",
            metavar="METHOD",
            help="ties, slerp, … (default of a new one: task_arithmetic)",
        )
        parser.add_argument(
            "--param",
            metavar="[SOURCE.]NAME=VALUE",
            action="append",
            default=[],
            help="lambda=0.8, or math.density=0.5 of one source; several times",
        )
        parser.add_argument(
            "--mode",
            metavar="merge|ensemble",
            choices=("merge", "ensemble"),
            help="how it answers (default of a new one: merge)",
        )
        _add_message(parser)


EXAMPLES = {
    "list": "mergeserve presets list",
    "show": "mergeserve presets show tutor",
    "explain": "mergeserve presets explain tutor",
    "create": "mergeserve presets create tutor math=0.6 code=0.4\n"
    "mergeserve presets create tutor math=1 code=1 --method ties --param lambda=0.8",
    "set": "mergeserve presets set tutor math=0.8 --message 'more math'",
    "history": "mergeserve presets history tutor",
    "rollback": "mergeserve presets rollback tutor 1",
    "delete": "mergeserve presets delete tutor",
}


def _add(actions: Commands, name: str, text: str, usage: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        about=f"{text[0].upper()}{text[1:]}.",
        example=EXAMPLES[name],
        usage=" ".join(filter(None, ["%(prog)s", usage, "[options]"])),
    )
    add_server_arguments(parser, edits=True)
    return parser


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME", help="the preset's name")
    return parser


def _add_message(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--message", metavar="TEXT", help="why; kept with the revision")
