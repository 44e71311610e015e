"""`mergeserve presets` against a real server."""

from collections.abc import Iterator

import pytest

from server.__main__ import main
from server.commands.http_client import CommandError
from server.commands.presets import parse_weight
from server.commands.table import table
from tests.server.api.live import LiveServer, listening
from tests.server.api.scripted import ScriptedEngine, make_app
from tests.server.presets.tiny import World, preset

USER, ADMIN = "user-secret", "admin-secret"


@pytest.fixture
def live(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A server with keys, which the environment names."""
    world = World(tmp_path)
    engine = ScriptedEngine()
    catalog = world.open_with_sources()
    document = preset(sources={"math": {"weight": 0.5}, "code": {"weight": [0.2, 0.8]}})
    catalog.seed_presets([document], "the test")
    app = make_app(engine, catalog, api_key=[USER], admin_key=[f"root:{ADMIN}"])
    with listening(app, engine) as server:
        monkeypatch.setenv("MERGESERVE_URL", server.url)
        monkeypatch.setenv("MERGESERVE_ADMIN_KEY", f"root:{ADMIN},other:key")
        yield server
    world.close()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that works prints."""
    assert main(["presets", *argv]) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a command that fails."""
    assert main(["presets", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_list(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` is a table with one line a preset."""
    header, row = run(capsys, "list").splitlines()
    assert header.split() == ["PRESET", "MODE", "METHOD", "WEIGHTS", "PATH", "STATE"]
    assert set(row.split()) == {
        *("tutor@1", "merge", "task_arithmetic"),
        *("code=0.2,0.8", "math=0.5", "blend", "ready"),
    }


def test_set_history_rollback(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`set` changes the weights that it names, `history` lists it, `rollback` undoes it."""
    changed = run(capsys, "set", "tutor", "math=0.8", "--message", "more math")
    assert "tutor@2" in changed
    assert "math=0.8" in changed
    assert "code=0.2,0.8" in changed
    history = run(capsys, "history", "tutor").splitlines()
    assert history[1].startswith("2 ")
    assert "root" in history[1]
    assert history[1].endswith("more math")
    assert "tutor@3" in run(capsys, "rollback", "tutor", "1")
    assert "math=0.5" in run(capsys, "show", "tutor")
    assert "math=0.8" in run(capsys, "show", "tutor@2")


def test_gradient(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight may be a gradient."""
    assert "math=0,1" in run(capsys, "set", "tutor", "math=0,1")


def test_warnings(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`set` and `show` tell at once what is likely to break the model."""
    changed = run(capsys, "set", "tutor", "math=1000")
    assert "its sources count 1000" in changed
    assert "warning" in run(capsys, "show", "tutor")
    assert "warning" not in run(capsys, "set", "tutor", "math=0.5")


def test_errors_of_the_server(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the server is one line with the server's words, and exit code 1."""
    assert "nobody" in fail(capsys, "show", "nobody")
    assert "nobody" in fail(capsys, "set", "tutor", "nobody=1")
    assert "9" in fail(capsys, "rollback", "tutor", "9")
    assert "revision" in fail(capsys, "show", "tutor@x")


def test_keys(
    live: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is taken from the options, else from the environment; a user's key cannot edit."""
    monkeypatch.delenv("MERGESERVE_ADMIN_KEY")
    assert "needs a key" in fail(capsys, "list")
    run(capsys, "list", "--api-key", USER)
    assert "admin key" in fail(capsys, "set", "tutor", "math=1", "--api-key", USER)
    run(capsys, "set", "tutor", "math=1", "--admin-key", ADMIN)
    monkeypatch.setenv("MERGESERVE_API_KEY", USER)
    run(capsys, "list")


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that cannot be reached is one line with its address."""
    assert "http://127.0.0.1:9" in fail(capsys, "list", "--url", "http://127.0.0.1:9")
    assert fail(capsys, "list", "--url", "nonsense")


@pytest.mark.parametrize("text", ["math", "=1", "math=", "math=x", "math=nan", "math=1,inf"])
def test_malformed_weight(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that is not a finite number is refused before anything is sent."""
    with pytest.raises(CommandError, match="SOURCE=WEIGHT"):
        parse_weight(text)
    assert text in fail(capsys, "set", "tutor", text)


def test_negative_weight() -> None:
    """Weights may be negative."""
    assert parse_weight("style=-0.5") == ("style", -0.5)


def test_table() -> None:
    """Columns are aligned; what is empty is a hyphen, and control characters are blanks."""
    assert table(["A", "B"], [["x", None], ["long", "a\x1b\nb"]]) == (
        "A     B\nx     -\nlong  a  b"
    )
