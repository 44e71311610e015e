"""`mergeserve compare`: a comparison on a running server, with its progress and its result."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from pydantic import JsonValue

from server.commands.candidates import read_candidates
from server.commands.http_client import CommandError, authorization, error_message
from server.commands.progress import CountReporter
from server.commands.prompts_file import PromptLine, PromptsFileError, read_prompts

CONNECT_SECONDS = 10.0
MAX_FILE_NAME = 256

Frame = Mapping[str, JsonValue]


def run(arguments: argparse.Namespace) -> int:
    """Compare, write what was asked for, and print a summary; an error is exit code 1."""
    try:
        result = _compare(arguments, _body(arguments, read_prompts(arguments.prompts)))
        _write(arguments, result)
    except PromptsFileError as error:
        for reason in error.reasons:
            print(f"mergeserve compare: {reason}", file=sys.stderr)
        return 1
    except (CommandError, OSError, httpx.InvalidURL) as error:
        print(f"mergeserve compare: {error}", file=sys.stderr)
        return 1
    return 0


def _body(arguments: argparse.Namespace, lines: list[PromptLine]) -> dict[str, JsonValue]:
    """The request."""
    body: dict[str, JsonValue] = {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "concurrency": arguments.concurrency,
        "stream": True,
        "html": arguments.html is not None,
        "positions": arguments.json is not None,
        "prompts_file": arguments.prompts.name[-MAX_FILE_NAME:],
    }
    if lines[0].messages is None:
        body["prompts"] = [line.prompt for line in lines]
    else:
        body["messages"] = [list(line.messages or ()) for line in lines]
    if any(line.reference is not None for line in lines):
        body["references"] = [line.reference for line in lines]
    if any(line.tag is not None for line in lines):
        body["tags"] = [line.tag for line in lines]
    if arguments.margin is not None:
        body["margin"] = arguments.margin
    if arguments.scorer:
        body["scorer"] = _scorer(arguments.scorer)
    return {**body, **read_candidates(arguments)}


def _scorer(given: list[str]) -> JsonValue:
    """One name for all prompts, or names by tag."""
    pairs = [text.rpartition("=") for text in given]
    if len(pairs) == 1 and not pairs[0][1]:
        return given[0]
    if wrong := [
        text for text, (tag, _, name) in zip(given, pairs, strict=True) if not tag or not name
    ]:
        raise CommandError(f"--scorer {wrong[0]}: give one NAME, or TAG=NAME for each tag")
    return {tag: name for tag, _, name in pairs}


def _compare(arguments: argparse.Namespace, body: Mapping[str, JsonValue]) -> Frame:
    """Send the request, show how far it is, and return the result."""
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    headers = {**authorization(arguments), "Content-Type": "application/json"}
    try:
        with (
            httpx.Client(base_url=arguments.url, headers=headers, timeout=timeout) as client,
            client.stream("POST", "/v1/compare", content=json.dumps(body)) as response,
        ):
            if response.is_error:
                response.read()
                raise CommandError(error_message(_parsed(response.text), response.status_code))
            return _follow(_frames(response))
    except httpx.HTTPError as error:
        raise CommandError(f"{arguments.url}: {error or repr(error)}") from error


def _frames(response: httpx.Response) -> Iterator[Frame]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            frame = _parsed(line.removeprefix("data: "))
            if not isinstance(frame, dict):
                raise CommandError(f"{response.url} is not a mergeserve server")
            yield frame


def _follow(frames: Iterator[Frame]) -> Frame:
    """Show progress until the result comes."""
    shown = CountReporter()
    try:
        for frame in frames:
            if "error" in frame:
                raise CommandError(error_message(frame, 200))
            if frame.get("object") == "comparison":
                return frame
            progress = frame.get("progress")
            if isinstance(progress, dict):
                phase, done, total = (progress[name] for name in ("phase", "done", "total"))
                assert isinstance(done, int)
                assert isinstance(total, int)
                shown(str(phase), done, total)
    finally:
        shown.close()
    raise CommandError("the server ended the comparison without a result")


def _write(arguments: argparse.Namespace, result: Frame) -> None:
    """The files that were asked for, and on the terminal one screen: the rest is in the files."""
    shown = ("text", "markdown", "html", "choices")
    rest = {name: value for name, value in result.items() if name not in shown}
    wanted: list[tuple[Path | None, str]] = [
        (arguments.html, str(result.get("html"))),
        (arguments.markdown, str(result["markdown"])),
        (arguments.json, json.dumps(rest, ensure_ascii=False, indent=1) + "\n"),
    ]
    written = [(path, text) for path, text in wanted if path is not None]
    for path, text in written:
        path.write_text(text, "utf-8")
    print(result.get("text") or result["markdown"], end="")  # a server of before has no text
    for path, _ in written:
        print(f"report: {path}")
    if not written:
        print("the whole report: ask again with --html report.html, --markdown or --json")


def _parsed(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return None
    return value
