"""The command line of `mergeserve presets`."""

import argparse

from server.commands.http_client import add_server_arguments


def add_presets_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `presets` and its subcommands."""
    presets = commands.add_parser(
        "presets", help="read and edit the presets of a running server", allow_abbrev=False
    )
    actions = presets.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add(actions, "list", "list presets and what they serve")
    show = _add(actions, "show", "show one preset")
    show.add_argument("name", metavar="NAME", help="name, or NAME@REVISION")
    change = _add(actions, "set", "change the weights of sources; the others stay")
    change.add_argument("name", metavar="NAME")
    change.add_argument(
        "weights",
        metavar="SOURCE=WEIGHT",
        nargs="+",
        help="a number, or numbers with commas between them for a gradient over the layers",
    )
    history = _add(actions, "history", "list the revisions of a preset")
    history.add_argument("name", metavar="NAME")
    rollback = _add(actions, "rollback", "make a new revision of what an old one was")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument("revision", metavar="REVISION", type=int)
    for editing in (change, rollback):
        editing.add_argument("--message", metavar="TEXT", help="kept with the revision")


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, allow_abbrev=False)
    add_server_arguments(parser, edits=True)
    return parser
