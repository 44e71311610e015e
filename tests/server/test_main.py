"""The command `mergeserve`."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest

from server.__main__ import build_parser, installed_version, main
from server.settings import Settings


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version names the command and its version."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mergeserve {installed_version()}\n"


def test_commands() -> None:
    """What is offered is what works: the commands of later releases are not."""
    text = build_parser().format_help()
    assert all(
        f" {c} " in text for c in ("serve", "merge", "export", "inspect", "presets", "compare")
    )
    assert "study" not in text


COMMANDS = (
    *([], ["serve"], ["merge"], ["export"], ["inspect"], ["compare"], ["presets"]),
    *(["presets", action] for action in ("list", "show", "explain", "create", "set")),
    *(["presets", action] for action in ("history", "rollback", "delete")),
)


@pytest.mark.parametrize("argv", COMMANDS)
def test_help_fits_a_screen(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every help has at most 40 lines of 100 columns, begins with an example, and no option is
    without a text; each example is a command line that parses.
    """
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    examples = [line.split("#")[0] for line in lines[:6] if line.startswith("  mergeserve")]
    assert examples
    for example in examples:
        build_parser().parse_args(shlex.split(example)[1:])
    for line, following in pairwise([*lines, ""]):
        if re.match(r"  -|  [A-Z]", line) and line.strip() not in ("COMMAND", "ACTION"):
            assert re.search(r"\S  +\S", line.strip()) or following.startswith(" " * 20), line


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help-all` has every option; `export --help` those that an export needs."""
    with pytest.raises(SystemExit):
        main(["serve", "--help-all"])
    text = capsys.readouterr().out
    for name in Settings.model_fields.keys() - {"model"}:
        assert f"--{name.replace('_', '-')} " in text
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert "--shutdown-timeout" not in text
    assert "--database-url" in text


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["study"],
        ["merge", "recipe.yaml"],
        ["merge", "recipe.yaml", "out", "--source", "no-equals"],
        ["inspect"],
        ["inspect", "folder", "--recipe", "recipe.yaml"],
        ["export", "tutor", "out", "--as", "gguf"],
        ["presets"],
        ["presets", "edit"],
    ],
)
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command that there is not, or one without what it needs, is a usage error."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "no model"),
        (["m", "--port", "x"], "--port"),
        (["m", "--host", "0.0.0.0"], "--insecure-bind"),
        (["m", "--model", "n"], "two models"),
        (["m", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--demo", "m"], "--demo"),
    ],
)
def test_serve_refuses(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that cannot be used end `serve` with the reason, before anything is loaded."""
    assert main(["serve", *argv]) == 2
    assert reason in capsys.readouterr().err


def test_keys_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """An error never shows a key."""
    assert main(["serve", "m", "--api-key", "hidden key", "--admin-key", "x y"]) == 2
    assert "hidden" not in capsys.readouterr().err


def test_reader_that_has_seen_enough() -> None:
    """A command whose output is cut, as by `head`, ends without a traceback."""
    code = (
        "import os, sys; from server.__main__ import main; import server.commands.presets as p; "
        "p.run = lambda arguments: print('x' * 10**6) or 0; sys.exit(main(['presets', 'list']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_help_and_presets_do_without_torch() -> None:
    """Help, usage errors, and asking a server for its presets do not wait for torch."""
    code = (
        "import sys; from server.__main__ import build_parser; build_parser(); "
        "import server.commands.presets, server.commands.compare; "
        "sys.exit(bool({'torch', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
