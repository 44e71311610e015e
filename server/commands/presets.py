"""`mergeserve presets`: presets for people at a shell, over HTTP."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping

import httpx

from server.commands.http_client import CommandError, ServerError, authorization, in_cli_words
from server.commands.preset_change import read_change
from server.commands.preset_explanation import explanation_text
from server.commands.preset_view import card, history_table, label, list_table
from server.commands.presets_client import PresetsClient
from server.commands.waiting import waiting
from server.suggestion import did_you_mean

NOT_FOUND = 404


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; an error is one line and exit code 1."""
    actions: Mapping[str, Callable[[PresetsClient, argparse.Namespace], str]] = {
        "list": _list,
        "show": _show,
        "explain": _explain,
        "create": _create,
        "set": _set,
        "history": _history,
        "rollback": _rollback,
        "delete": _delete,
    }
    headers = authorization(arguments)
    try:
        with httpx.Client(base_url=arguments.url, headers=headers) as client:
            print(actions[arguments.action](PresetsClient(client), arguments))
    except (CommandError, httpx.InvalidURL) as error:
        print(f"mergeserve presets: {in_cli_words(str(error), arguments.url)}", file=sys.stderr)
        return 1
    return 0


def _list(client: PresetsClient, arguments: argparse.Namespace) -> str:
    presets = client.all()
    if not presets:
        return "there are no presets: `mergeserve presets create NAME SOURCE=WEIGHT` makes one"
    return list_table(presets)


def _show(client: PresetsClient, arguments: argparse.Namespace) -> str:
    return card(client.get(*_name_and_revision(arguments.name)))


def _explain(client: PresetsClient, arguments: argparse.Namespace) -> str:
    name, revision = _name_and_revision(arguments.name)
    with waiting(f"explaining {arguments.name}"):
        found = client.explain(name, revision, interference=not arguments.no_interference)
    if arguments.json:
        return json.dumps(found, ensure_ascii=False, indent=1)
    return explanation_text(found)


def _create(client: PresetsClient, arguments: argparse.Namespace) -> str:
    document = {"name": arguments.name, **read_change(arguments)}
    with waiting(f"creating {arguments.name}"):
        return card(client.create(document, arguments.message))


def _set(client: PresetsClient, arguments: argparse.Namespace) -> str:
    """Edit a preset, or create it: then it is said, since the name may be a mistake."""
    change = read_change(arguments)
    try:
        with waiting(f"changing {arguments.name}"):
            return card(client.patch(arguments.name, change, arguments.message))
    except ServerError as error:
        if error.status != NOT_FOUND:
            raise
    known = [str(preset["name"]) for preset in client.all()]
    created = _create(client, arguments)
    meant = did_you_mean(arguments.name, known)
    undo = f"{meant}`mergeserve presets delete {arguments.name}` undoes it" if meant else ""
    print(f"created {arguments.name}, a new preset. {undo}".rstrip(), file=sys.stderr)
    return created


def _history(client: PresetsClient, arguments: argparse.Namespace) -> str:
    return history_table(client.history(arguments.name))


def _rollback(client: PresetsClient, arguments: argparse.Namespace) -> str:
    with waiting(f"rolling {arguments.name} back"):
        return card(client.rollback(arguments.name, arguments.revision, arguments.message))


def _delete(client: PresetsClient, arguments: argparse.Namespace) -> str:
    last = label(client.get(arguments.name, ""))
    client.delete(arguments.name, arguments.message)
    return f"deleted {last}, with all its revisions"


def _name_and_revision(text: str) -> tuple[str, str]:
    """`tutor@7` taken apart."""
    name, _, revision = text.partition("@")
    return name, revision
