"""Mistakes on a command line are told before anything heavy is imported, or a model loaded."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, an adapter, a recipe, and a folder that is full."""
    monkeypatch.chdir(tmp_path)
    for name, file in (("base", "config.json"), ("math", "adapter_config.json"), ("full", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "recipe.yaml").write_text("{}")
    (tmp_path / "model.gguf").write_text("")
    (tmp_path / "prompts.jsonl").write_text("")
    return tmp_path


CASES = [
    ("merge recipe.yaml full", 1, ["full is not empty", "name another folder"]),
    ("merge absent.yaml out", 1, ["absent.yaml: there is no such file"]),
    ("merge full out", 1, ["full cannot be read: it is a folder"]),
    ("merge recipe.yaml out --source a=./gone", 1, ["--source a: ./gone is not there"]),
    ("merge recipe.yaml out --model math", 1, ["math is an adapter, and no base"]),
    ("merge absent.yaml full --model gone", 1, ["absent.yaml", "full", "gone"]),
    ("serve base --source math=gone", 1, ["--source math: gone is not there", "OWNER/NAME"]),
    ("serve math", 1, ["math is an adapter, and no base", "--source math=math"]),
    ("serve model.gguf", 1, ["model.gguf is a GGUF file", "GgufConfig"]),
    ("serve base --presets gone.yaml", 2, ["--presets", "gone.yaml"]),
    ("serve base --chat-template gone", 2, ["--chat-template", "gone"]),
    ("serve base --config gone.yaml", 2, ["--config gone.yaml"]),
    ("export tutor full --url http://127.0.0.1:9", 1, ["full is not empty"]),
    ("export tutor out --model gone", 1, ["gone is not there"]),
    ("export tutor out --model base --source a=gone", 1, ["--source a: gone is not there"]),
    ("inspect gone", 1, ["gone is not a folder"]),
    ("inspect --recipe gone.yaml", 1, ["gone.yaml: there is no such file"]),
    ("inspect --recipe recipe.yaml --html gone/x.html", 1, ["there is no folder"]),
    ("compare tutor --prompts gone.jsonl", 1, ["gone.jsonl: there is no such file"]),
    ("compare tutor --prompts prompts.jsonl --html gone/x.html", 1, ["there is no folder"]),
]


@pytest.mark.parametrize(("line", "code", "told"), CASES)
def test_mistakes(
    places: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, told: list[str]
) -> None:
    """Each names the value and the way out, and all that are seen are told."""
    assert main(line.split()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in told:
        assert text in captured.err
    assert "Traceback" not in captured.err


def test_a_port_that_is_taken(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told with the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "base", "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 is in use" in (told := capsys.readouterr().err)
    assert "--port" in told


def test_without_torch(places: Path) -> None:
    """None of these waits for an import of seconds."""
    lines = [line.split() for line, _, _ in CASES]
    code = (
        "import sys; from server.__main__ import main\n"
        f"assert all(main(line) for line in {lines!r})\n"
        "sys.exit(bool({'torch', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, cwd=places, text=True)
    assert done.returncode == 0, done.stderr
