"""`mergeserve compare` against a real server, and the file of prompts that it reads."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.__main__ import main
from server.commands.candidates import parse_candidate
from server.commands.prompts_file import PromptsFileError, read_prompts
from tests.server.api.live import LiveServer, listening
from tests.server.api.reading import compares
from tests.server.api.scripted import ScriptedEngine, breaks, make_app
from tests.server.presets.tiny import World, preset

KEY = "user-secret"


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A server with a key that the environment names; the base says no and all others yes."""
    world = World(tmp_path)
    engine = ScriptedEngine()
    engine.script = compares({"base": "no"})
    catalog = world.open_with_sources()
    catalog.seed_presets([preset()], "the test")
    app = make_app(engine, catalog, api_key=[KEY], overrides="weights")
    with listening(app, engine) as server:
        monkeypatch.setenv("MERGESERVE_URL", server.url)
        monkeypatch.setenv("MERGESERVE_API_KEY", KEY)
        yield server
    world.close()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two prompts with references and tags."""
    return write(
        tmp_path,
        {"prompt": "one", "reference": "yes", "tag": "a"},
        {"prompt": "two", "reference": "no", "tag": "b"},
    )


def write(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


def compare(*argv: object) -> int:
    return main(["compare", *map(str, argv)])


def test_prints_one_screen(
    live: LiveServer, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was compared, the verdict, the candidates and how to get the rest; no Markdown."""
    assert compare("tutor", "--prompts", prompts, "--scorer", "exact") == 0
    out = capsys.readouterr().out
    assert out.startswith("tutor@1: merge against ensemble on prompts.jsonl, 20")
    for name in ("base", "merge", "ensemble", "math"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE), name
    assert "by exact" in out
    assert "|" not in out
    assert "**" not in out
    lines = out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 110
    assert lines[-1].startswith("the whole report: ask again with --html")


def test_writes_what_is_asked_for(
    live: LiveServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three files, and on the terminal the summary and where they are."""
    html, markdown, result = (tmp_path / f"out.{kind}" for kind in ("html", "md", "json"))
    files = ("--html", html, "--markdown", markdown, "--json", result)
    arguments = ("--candidate", "base", "--candidate", "math", "--scorer", "exact")
    assert compare("tutor", "--prompts", prompts, *arguments, *files) == 0
    found = json.loads(result.read_text())
    assert [candidate["name"] for candidate in found["candidates"]] == ["tutor", "base", "math"]
    assert found["reference"] == 0
    assert found["prompts"][0]["positions"]
    assert html.read_text().startswith("<!doctype html>")
    assert markdown.read_text().startswith("**")
    out = capsys.readouterr().out
    assert " ".join(found["verdict"]["sentence"].split()) in " ".join(out.split())
    assert out.splitlines()[-3:] == [f"report: {path}" for path in (html, markdown, result)]
    assert not {"html", "markdown", "text"} & found.keys()
    assert found["about"]["prompts_file"] == "prompts.jsonl"


@pytest.mark.parametrize(
    ("arguments", "names", "reference"),
    [
        (["--candidate", "base", "--reference", "base"], ["tutor", "base"], 1),
        (["--candidate", "base", "--reference", "math"], ["tutor", "base", "math"], 2),
    ],
)
def test_the_reference_is_one_of_the_candidates(
    live: LiveServer,
    prompts: Path,
    tmp_path: Path,
    arguments: list[str],
    names: list[str],
    reference: int,
) -> None:
    """Or becomes one."""
    result = tmp_path / "out.json"
    assert compare("tutor", "--prompts", prompts, *arguments, "--json", result) == 0
    found = json.loads(result.read_text())
    assert [candidate["name"] for candidate in found["candidates"]] == names
    assert found["reference"] == reference


def test_weights_that_are_not_saved(
    live: LiveServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A candidate may be a preset with other weights, and may be the reference."""
    result = tmp_path / "out.json"
    candidates = ("--candidate", "tutor,math=0.8", "--candidate", "tutor:ensemble,math=-1")
    options = (*candidates, "--reference", "tutor,math=0.8", "--json", result)
    assert compare("tutor", "--prompts", prompts, *options) == 0
    found = json.loads(result.read_text())
    names = [candidate["name"] for candidate in found["candidates"]]
    assert names == ["tutor", "tutor,math=0.8", "tutor:ensemble,math=-1"]
    assert found["reference"] == 1
    assert parse_candidate("tutor@3,a=0.5,b=1") == {
        "model": "tutor@3",
        "mergeserve": {"weights": {"a": 0.5, "b": 1.0}},
        "name": "tutor@3,a=0.5,b=1",
    }
    for wrong in ("tutor,math", "tutor,math=x", "tutor,math=1,2"):
        capsys.readouterr()
        assert compare("tutor", "--prompts", prompts, "--candidate", wrong) == 1
        assert "SOURCE=WEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize("reference", ["tutor", "tutor:merge", "merge"])
def test_the_preset_itself_may_be_the_reference(
    live: LiveServer, prompts: Path, tmp_path: Path, reference: str
) -> None:
    """Among its parts it is called merge."""
    result = tmp_path / "out.json"
    assert compare("tutor", "--prompts", prompts, "--reference", reference, "--json", result) == 0
    found = json.loads(result.read_text())
    assert found["candidates"][found["reference"]]["name"] == "merge"


def test_a_scorer_for_each_tag(live: LiveServer, prompts: Path, tmp_path: Path) -> None:
    """TAG=NAME, several times; prompts of other tags have no score."""
    result = tmp_path / "out.json"
    scorers = ("--scorer", "a=exact")
    assert compare("tutor", "--prompts", prompts, *scorers, "--json", result) == 0
    found = json.loads(result.read_text())
    scores = [prompt["answers"][0]["score"] for prompt in found["prompts"]]
    assert scores[0] is not None
    assert scores[1] is None
    assert compare("tutor", "--prompts", prompts, "--scorer", "a=", "--json", result) == 1


def test_every_bad_line_is_told_by_its_number(
    live: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is sent."""
    path = write(
        tmp_path,
        {"prompt": "fine"},
        "{not json",
        {"promt": "typo"},
        {"prompt": "a", "reference": 7},
        "",
        {"messages": []},
        "[]",
    )
    assert compare("tutor", "--prompts", path) == 1
    lines = capsys.readouterr().err.splitlines()
    numbers = [int(re.search(r"prompts\.jsonl:(\d+): ", line)[1]) for line in lines]  # type: ignore[index]
    assert numbers == [2, 3, 4, 6, 7]
    assert "Invalid JSON" in lines[0]
    assert "promt: unknown field; there are prompt, messages, reference and tag" in lines[1]
    assert "reference: Input should be a valid string" in lines[2]
    assert live.engine.requests == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no prompts"),
        (["", "  "], "has no prompts"),
        ([{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}], "line 1 a prompt"),
        ([{"prompt": "a", "messages": [{}]}], ":1: needs either prompt or messages"),
        ([{"prompt": ""}], ":1: prompt: String should have at least 1 character"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, lines: list[object], message: str) -> None:
    """With the reason."""
    with pytest.raises(PromptsFileError, match=re.escape(message)):
        read_prompts(write(tmp_path, *lines))


def test_a_long_list_of_bad_lines_is_cut(tmp_path: Path) -> None:
    """The first twenty, and how many more."""
    with pytest.raises(PromptsFileError) as caught:
        read_prompts(write(tmp_path, *["x"] * 30))
    assert len(caught.value.reasons) == 21
    assert caught.value.reasons[-1] == "and 10 more bad lines"


def test_conversations(live: LiveServer, tmp_path: Path) -> None:
    """Lines with messages go as messages."""
    path = write(tmp_path, {"messages": [{"role": "user", "content": "hi"}]})
    result = tmp_path / "out.json"
    assert compare("tutor", "--prompts", path, "--json", result) == 0
    assert json.loads(result.read_text())["prompts"][0]["prompt"] == "hi"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "The model 'nobody' does not exist"),
        (["tutor", "--candidate", "nobody"], "candidates[1]: The model 'nobody' does not exist"),
        (["tutor", "--scorer", "vibes"], "there is no scorer 'vibes'"),
        (["tutor", "--api-key", "wrong"], "the key is not known to this server"),
        (["tutor", "--html", "/nowhere/x.html"], "there is no folder /nowhere"),
        (["tutor", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: "),
    ],
)
def test_errors_are_one_line(
    live: LiveServer,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """What the server says, and exit code 1."""
    assert compare(*arguments, "--prompts", prompts) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_error_in_the_stream_is_told(
    live: LiveServer, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison failed after it had begun."""
    live.engine.script = breaks()
    assert compare("tutor", "--prompts", prompts) == 1
    assert "answered none of 2 prompts: it broke" in capsys.readouterr().err


def test_a_server_that_breaks_off_is_told(
    prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without a result is an error, not a success without output."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text='data: {"choices": []}\n\ndata: [DONE]\n\n')

    transport = httpx.MockTransport(answer)
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=transport, **options))
    assert compare("tutor", "--prompts", prompts) == 1
    assert "ended the comparison without a result" in capsys.readouterr().err
