"""What the log says when the server is ready."""

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from server.api.service import Service
from server.commands.greeting import example, greet
from tests.server.api.live import listening, wait_until
from tests.server.api.scripted import CHAT_TEMPLATE, ScriptedEngine, make_app, tokenizer
from tests.server.presets.tiny import World, preset

URL = "http://127.0.0.1:8000"


def service(world: World, chat_template: str | None = CHAT_TEMPLATE) -> Service:
    return Service(ScriptedEngine(), tokenizer(chat_template), world.open_with_sources())  # type: ignore[arg-type]


def logged(service: Service, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, logger="server.commands.greeting"):
        greet(service, URL, needs_key=False)
    return caplog.messages


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_ready_is_what_can_be_called(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Base, presets and sources are listed; the last line is the command to try."""
    loaded = service(world)
    loaded.catalog.seed_presets([preset("tutor")], "the test")
    first, *_, last = logged(loaded, caplog)
    assert first == "ready: tiny, tutor, code, math"
    assert last.startswith(f"try: curl {URL}/v1/chat/completions ")


def test_failed_presets_are_not_ready(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What failed is a warning with its name and reason, and is not among what is ready."""
    loaded = service(world)
    loaded.catalog.seed_presets([preset("good"), preset("bad")], "the test")
    spoil(loaded, "bad")
    lines = logged(loaded, caplog)
    assert lines[0] == "ready: tiny, good, code, math"
    assert "not ready: bad: its weights are gone" in lines


def test_a_service_that_is_there_before_the_address(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A tiny model is loaded before the server listens: it greets once, when it has an address."""
    engine = ScriptedEngine()
    app = make_app(engine, world.open_with_sources())
    with (
        caplog.at_level(logging.INFO, logger="server.commands"),
        listening(app, engine) as live,
    ):
        wait_until(lambda: any(message.startswith("try: ") for message in caplog.messages))
        assert "Exception" not in caplog.text
        assert f"listening on {live.url}; the model is being loaded" in caplog.messages
    assert sum(message.startswith("ready: ") for message in caplog.messages) == 1


def spoil(loaded: Service, name: str) -> None:
    """Make a preset one that failed."""
    shown = loaded.catalog.presets

    def presets() -> list[object]:
        return [
            replace(item, state="failed", reasons=("its weights are gone",))
            if item.name == name
            else item
            for item in shown()
        ]

    loaded.catalog.presets = presets  # type: ignore[method-assign, assignment]


def test_example_is_a_line_for_a_shell(world: World) -> None:
    """The line is one command with a JSON body; of a key it names the variable only."""
    loaded = service(world)
    words = shlex.split(example(loaded, URL, needs_key=True))
    body = json.loads(words[words.index("-d") + 1])
    assert (body["model"], list(body)[-1]) == ("base", "messages")
    assert "Authorization: Bearer $MERGESERVE_API_KEY" in words


def test_example_without_a_chat_template(world: World) -> None:
    """A base that cannot chat is shown a completion."""
    line = example(service(world, None), URL, needs_key=False)
    assert f"{URL}/v1/completions" in line
    assert '"prompt"' in line
