"""`mergeserve presets` against a real server."""

import json
from collections.abc import Iterator

import pytest

from server.__main__ import main
from server.commands.http_client import CommandError
from server.commands.preset_change import parse_parameter, parse_weight
from server.commands.preset_explanation import explanation_text
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
    assert run(capsys, "history", "tutor").splitlines()[1].endswith("rolled back to 1")
    assert "math=0.5" in run(capsys, "show", "tutor")
    assert "math=0.8" in run(capsys, "show", "tutor@2")


def test_set_creates_what_there_is_not(
    live: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`set` of a new name creates it, with its parameters, and says so: the name may be a typo."""
    options = ("--method", "linear", "--param", "normalize=false")
    argv = ["presets", "set", "tuter", "math=0.6", "code=0.4", *options, "--message", "first"]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert "tuter@1" in told.out
    assert "math=0.6" in told.out
    assert "normalize=false" in told.out
    assert "linear" in told.out
    assert "first" in told.out
    assert "a new preset. Did you mean 'tutor'?" in told.err
    run(capsys, "set", "tuter", "--mode", "ensemble", "--param", "normalize=true")
    shown = run(capsys, "show", "tuter")
    assert "normalize=true" in shown
    assert "ensemble" in shown


def test_create_and_delete(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`create` makes what is not there, `delete` takes it away; each says what to do else."""
    assert "judge@1" in run(capsys, "create", "judge", "math=1")
    assert "`mergeserve presets set` edits it" in fail(capsys, "create", "judge", "math=1")
    assert "judge@1" in run(capsys, "delete", "judge")
    assert "judge" not in run(capsys, "list")
    assert "`mergeserve presets list`" in fail(capsys, "delete", "judge")


def test_nothing_to_set(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A change of nothing is a mistake, and creates nothing."""
    assert "SOURCE=WEIGHT" in fail(capsys, "set", "tutor")
    assert "SOURCE=WEIGHT" in fail(capsys, "create", "judge")
    assert "judge" not in run(capsys, "list")


def test_explain(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The path and why, a line for each source and each group of layers, the twin; --json has all
    that the server says. Warnings come first.
    """
    text = run(capsys, "explain", "tutor")
    assert "tutor@1, merge, ready" in text
    assert "blend: task_arithmetic of adapters is a sum of low-rank deltas" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["math", "adapter", "0.5", "0.5", "4", "tensors"] in rows
    assert ["0.2", "layer", "0:", "self_attn.q_proj,", "mlp.up_proj"] in rows
    assert "task_arithmetic of base 0, code 0.5, math 0.5; approximate" in text
    whole = json.loads(run(capsys, "explain", "tutor@1", "--json"))
    assert whole["preset"] == "tutor"
    assert "/v1" not in fail(capsys, "explain", "tutr")
    explained = {**whole, "warnings": ["the sum of the weights is 6"]}
    assert explanation_text(explained).startswith("warning: the sum of the weights is 6\n")


def test_a_name_that_is_nearly_right(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Is suggested, in words of the command line."""
    for action in (["show", "tutr"], ["history", "Tutor"], ["rollback", "tuto", "1"]):
        told = fail(capsys, *action)
        assert "Did you mean 'tutor'? `mergeserve presets list`" in told
        assert "GET" not in told
    assert "Did you mean" not in fail(capsys, "show", "nobody")


def test_a_list_fits_a_terminal(live: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Long values are shortened in lists, and whole in `show`."""
    weights = ",".join(f"0.{number}" for number in range(101, 150) if number % 10)
    run(capsys, "set", "tutor", f"math={weights}", "--message", "long " * 40)
    for action in (["list"], ["history", "tutor"]):
        lines = run(capsys, *action).splitlines()
        assert max(map(len, lines)) <= 110
        assert "…" in lines[1]
    assert weights in run(capsys, "show", "tutor")


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lambda=0.8", ("", "lambda", 0.8)),
        ("a.b.density=0.1,0.9", ("a.b", "density", [0.1, 0.9])),
        ("normalize=false", ("", "normalize", False)),
        (
            'density=[{"filter": "mlp", "value": 1}]',
            ("", "density", [{"filter": "mlp", "value": 1}]),
        ),
        ("rescale_norm=l1", ("", "rescale_norm", "l1")),
    ],
)
def test_parameter(text: str, expected: tuple[str, str, object]) -> None:
    """Values are numbers, gradients, JSON, else text; a dot parts the source from its parameter."""
    assert parse_parameter(text) == expected


@pytest.mark.parametrize("text", ["lambda", "=1", "math.=1", "lambda="])
def test_malformed_parameter(text: str) -> None:
    """A parameter without a name or a value is refused before anything is sent."""
    with pytest.raises(CommandError, match="NAME=VALUE"):
        parse_parameter(text)


def test_negative_weight() -> None:
    """Weights may be negative."""
    assert parse_weight("style=-0.5") == ("style", -0.5)


def test_table() -> None:
    """Columns are aligned; what is empty is a hyphen, and control characters are blanks."""
    assert table(["A", "B"], [["x", None], ["long", "a\x1b\nb"]]) == (
        "A     B\nx     -\nlong  a  b"
    )


def test_a_narrow_table() -> None:
    """The widest columns are shortened until the line fits."""
    text = table(["A", "B"], [["x" * 30, "short"], ["y", "z"]], width=20)
    assert text.splitlines()[1] == "x" * 12 + "…  short"
