"""How commands talk to a running server: where it is, with which key, and what its errors say."""

import argparse
import os
import re
from typing import Final

DEFAULT_URL = "http://127.0.0.1:8000"

CLI_WORDS: Final = {
    r"\bGET /v1/presets\b": "`mergeserve presets list`",
    r"\bPUT or PATCH edits it": "`mergeserve presets set` edits it",
    r"\bPUT that content back first": "give the source that content back first",
    r"\bGET /v1/models lists those that do": (
        "`mergeserve presets list` lists presets, which can be called with the base and the sources"
    ),
}
"""How the command line says what the API's errors say of its routes."""


class CommandError(Exception):
    """What the user is told, in one line."""


class ServerError(CommandError):
    """What the server refused, with the status of its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def default_url() -> str:
    """Where the server is unless --url says so."""
    return os.environ.get("MERGESERVE_URL") or DEFAULT_URL


def add_server_arguments(parser: argparse.ArgumentParser, *, edits: bool) -> None:
    """Add where the server is, and the keys."""
    server = parser.add_argument_group("the server")
    server.add_argument(
        "--url",
        metavar="URL",
        default=default_url(),
        help=f"the server (default: MERGESERVE_URL, else {DEFAULT_URL})",
    )
    server.add_argument(
        "--api-key", metavar="KEY", help="key that may read (default: MERGESERVE_API_KEY)"
    )
    if edits:
        server.add_argument(
            "--admin-key", metavar="KEY", help="key that may edit (default: MERGESERVE_ADMIN_KEY)"
        )


def authorization(arguments: argparse.Namespace) -> dict[str, str]:
    """The header with the key. The admin key opens what the API key opens, so it goes first."""
    given = getattr(arguments, "admin_key", None) or arguments.api_key
    listed = os.environ.get("MERGESERVE_ADMIN_KEY") or os.environ.get("MERGESERVE_API_KEY") or ""
    first = listed.partition(",")[0].strip()
    name, colon, value = first.partition(":")
    key = given or (value if colon else name)
    return {"Authorization": f"Bearer {key}"} if key else {}


def in_cli_words(message: str, url: str) -> str:
    """An error of the server with commands in place of the routes that it names."""
    for route, command in CLI_WORDS.items():
        message = re.sub(route, command, message)
    return re.sub(r"\bGET (/v1/\w+)", rf"`curl {url.rstrip('/')}\1`", message)


def error_message(answer: object, status: int) -> str:
    """What an error's body says, on one line."""
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        return " ".join(str(answer["error"].get("message")).split())
    return f"the server answered with status {status}"
