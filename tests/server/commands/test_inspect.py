"""`mergeserve inspect`."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from merging.adapter import read_adapter
from merging.adapter_export import stack_blend, write_adapter
from server.__main__ import main
from server.offline.opening import open_base
from tests.adapters import blend_of, save_adapter
from tests.models import save_tiny_model, tiny_model


def test_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter is described, alone and against a base whose weights are not loaded."""
    folder = save_adapter(tmp_path / "math", tiny_model())
    base = save_tiny_model(tmp_path / "tiny")
    (base / "model.safetensors").unlink()
    assert main(["inspect", str(folder)]) == 0
    assert "an adapter" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--model", str(base)]) == 0
    assert "it fits" in capsys.readouterr().out


def test_base_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base that cannot be read is one line and exit code 1."""
    assert main(["inspect", str(tmp_path), "--model", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that there is not is an error and no report."""
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "nothing is not a folder" in told.err


def test_an_adapter_that_records_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the base is hashed: its own adapter fits, and that of another base does not."""
    bases = [save_tiny_model(tmp_path / f"base-{seed}", seed=seed) for seed in (0, 1)]
    base = open_base("base", bases[0], None, lambda what, done, total: None).base
    plain = read_adapter(save_adapter(tmp_path / "plain", tiny_model()))
    (tmp_path / "math").mkdir()
    exported = stack_blend(blend_of(base, {plain: 1.0}), base)
    write_adapter(tmp_path / "math", exported, base, base_name="base-0")
    for folder, expected in zip(bases, ("it fits", "another base"), strict=True):
        assert main(["inspect", str(tmp_path / "math"), "--model", str(folder)]) == 0
        assert expected in capsys.readouterr().out


def test_a_checkpoint_against_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it can be a source, with the reasons against it."""
    base, tuned = (save_tiny_model(tmp_path / f"m{seed}", seed=seed) for seed in (0, 1))
    other = save_tiny_model(tmp_path / "other", "qwen3")
    assert main(["inspect", str(tuned), "--model", str(base)]) == 0
    assert "served as a variant" in capsys.readouterr().out
    assert main(["inspect", str(other), "--model", str(base)]) == 0
    assert "'qwen3'" in capsys.readouterr().out


class Page(HTMLParser):
    """What an HTML page has: tags, and addresses that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["g", "title"]:
            self.cells.append(data)


def recipe_of(tmp_path: Path, method: str) -> Path:
    """A merge of an adapter and, unless it is a blend, a fine-tune."""
    base = save_tiny_model(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"<b>{n}", tiny_model(), seed=n) for n in (1, 2)]
    if method == "ties":
        adapters[1] = save_tiny_model(tmp_path / "tuned", seed=1)
    models = [
        {"model": str(folder), "parameters": {"weight": weight}}
        for folder, weight in zip(adapters, (0.5, -0.2), strict=True)
    ]
    recipe = tmp_path / "recipe.yaml"
    content = {"merge_method": method, "base_model": str(base), "models": models}
    recipe.write_text(yaml.safe_dump(content))
    return recipe


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    """A summary of one screen, and behind --all a row for each kind in each layer that the merge
    changes, and one for all. The shares of a linear merge add up to 1.
    """
    recipe = str(recipe_of(tmp_path, method))
    assert main(["inspect", "--recipe", recipe]) == 0
    summary = capsys.readouterr().out
    assert len(summary.splitlines()) <= 40
    assert "LAYER" not in summary
    assert "--all" in summary
    assert re.search(rf"path +{'blend' if method == 'task_arithmetic' else 'variant'}: ", summary)
    assert "The merge changes the base by" in summary
    assert ("Is this the right base?" in summary) is (method == "ties")
    assert "weight 0.5" in summary
    assert main(["inspect", "--recipe", recipe, "--all"]) == 0
    out = capsys.readouterr().out
    _, *rows = [line.split() for line in out.split("LAYER")[1].splitlines()]
    linears = 3 * 7
    assert len(rows) == 1 + (linears if method == "task_arithmetic" else 3 * 9 + 2)
    total = rows[-1]
    assert total[1] == "all"
    shares = [float(x) for x in total[3:5]]
    if method == "task_arithmetic":
        assert sum(shares) == pytest.approx(1, abs=0.01)
    else:
        assert sum(shares) < 0.99


def test_heat_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page that fetches nothing, with a cell for every layer and kind of every figure, in
    colours of its own for light and dark; names are text.
    """
    page = tmp_path / "page.html"
    recipe = recipe_of(tmp_path, "task_arithmetic")
    assert main(["inspect", "--recipe", str(recipe), "--html", str(page)]) == 0
    assert f"heat maps: {page}" in capsys.readouterr().out
    assert str(tmp_path) not in page.read_text()
    text = page.read_text()
    found = Page(text)
    assert found.fetched == []
    assert not {"script", "link", "img", "b"} & set(found.tags)
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert found.tags.count("svg") == 1 + 2 + 2  # change, two shares, cosine and conflict
    assert len(found.cells) == 5 * 3 * 7
    assert re.fullmatch(r"layer 0, self_attn\.q_proj: [0-9.e-]+", found.cells[0])


def test_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, told before anything is read."""
    recipe = recipe_of(tmp_path, "task_arithmetic")
    nowhere = str(tmp_path / "none" / "page.html")
    assert main(["inspect", "--recipe", str(recipe), "--html", nowhere]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be written" in said.err


def test_options_that_go_with_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder has no heat map."""
    assert main(["inspect", str(tmp_path), "--html", "x.html"]) == 1
    assert "--recipe" in capsys.readouterr().err


def test_an_adapter_does_without_transformers(tmp_path: Path) -> None:
    """What an adapter is, is told without the import of seconds that only a base needs."""
    folder = save_adapter(tmp_path / "math", tiny_model())
    code = (
        "import sys; from server.__main__ import main; "
        f"main(['inspect', {str(folder)!r}]); sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
