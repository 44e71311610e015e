"""How commands talk to a running server: where it is, with which key, and what its errors say."""

import argparse
import os

DEFAULT_URL = "http://127.0.0.1:8000"


class CommandError(Exception):
    """What the user is told, in one line."""


def add_server_arguments(parser: argparse.ArgumentParser, *, edits: bool) -> None:
    """Add where the server is, and the keys."""
    parser.add_argument(
        "--url",
        default=os.environ.get("MERGESERVE_URL", DEFAULT_URL),
        help=f"the server (default: MERGESERVE_URL, else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="key that may read (default: MERGESERVE_API_KEY)"
    )
    if edits:
        parser.add_argument(
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


def error_message(answer: object, status: int) -> str:
    """What an error's body says, on one line."""
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        return " ".join(str(answer["error"].get("message")).split())
    return f"the server answered with status {status}"
