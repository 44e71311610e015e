"""What a fresh server has to do."""

import difflib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

from scripts.fresh.clone import Clone
from scripts.fresh.failure import FreshError
from scripts.fresh.readme import Example

PRESET = "office"
SECONDS = 600


def check_shell(example: Example, clone: Clone, url: str) -> None:
    """Paste the lines into a shell; they have to print what the README prints."""
    _compare(example, clone.run(example.at(url), cwd=clone.work))


def check_python(example: Example, clone: Clone, url: str) -> None:
    """Run the code; it has to print what the README prints."""
    path = clone.work / "example.py"
    path.write_text(example.at(url), "utf-8")
    _compare(example, clone.run(f"{clone.project}/.venv/bin/python {path}", cwd=clone.work))


def _compare(example: Example, printed: str) -> None:
    wanted, found = example.output.split("\n"), printed.rstrip("\n").split("\n")
    if wanted != found:
        lines = difflib.unified_diff(wanted, found, "README.md", "printed here", lineterm="")
        raise FreshError(
            f"another output than the README's, of:\n{example.text}\n\n" + "\n".join(lines)
        )


def first_token(url: str) -> None:
    """Wait for the first token of a stream."""
    body = {"model": "base", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
    with _send("POST", f"{url}/v1/chat/completions", {**body, "stream": True}) as stream:
        for chunk in _chunks(stream):
            if chunk["choices"][0]["delta"].get("content"):
                return
    raise FreshError("a stream ended without a token")


def check_edit_under_stream(url: str) -> None:
    """A stream that is open while its preset is edited ends on the revision that it began with,
    and the next answer is of the new one.
    """
    body = {"model": PRESET, "prompt": "Once", "max_tokens": 100, "ignore_eos": True}
    preset = f"{url}/v1/presets/{PRESET}"
    with _send("POST", f"{url}/v1/completions", {**body, "stream": True}) as stream:
        chunks = _chunks(stream)
        seen, ended = [next(chunks)], []
        rest = threading.Thread(
            target=lambda: (seen.extend(chunks), ended.append(time.monotonic()))
        )
        rest.start()
        with _send("PATCH", preset, {"sources": {"sql": {"weight": 0.1}}}) as answer:
            new = json.load(answer)["revision"]
        edited = time.monotonic()
        rest.join(SECONDS)
    with _send("POST", f"{url}/v1/completions", {**body, "max_tokens": 1}) as answer:
        after = json.load(answer)["mergeserve"]["revision"]
    revisions = {chunk["mergeserve"]["revision"] for chunk in seen if "mergeserve" in chunk}
    if not ended:
        raise FreshError(f"a stream of 100 tokens did not end within {SECONDS} s")
    if ended[0] < edited:
        raise FreshError("the stream was not open any more when its preset was edited")
    if revisions != {new - 1} or after != new:
        raise FreshError(
            f"the stream was of {revisions}, the edit made {new}, then {after} answers"
        )


def _send(method: str, url: str, body: dict[str, Any]) -> HTTPResponse:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
    answer = urllib.request.urlopen(request, timeout=SECONDS)
    assert isinstance(answer, HTTPResponse)
    return answer


def _chunks(stream: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; FreshError if it does not end with [DONE]."""
    for line in stream:
        text = line.decode().removeprefix("data: ").strip()
        if text == "[DONE]":
            return
        if text:
            yield json.loads(text)
    raise FreshError("a stream ended before its [DONE]")
