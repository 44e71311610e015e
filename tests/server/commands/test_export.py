"""`mergeserve export`: what was tuned is what is written."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from server.__main__ import main
from server.offline.opening import open_base
from server.presets.catalog import Catalog, Edit
from server.presets.store import PresetStore
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.server.api.live import listening
from tests.server.api.scripted import ScriptedEngine, make_app
from tests.server.presets.tiny import OPEN_POLICY, preset

TOKENS = torch.tensor([[5, 17, 120, 44, 9, 200, 31]])
LARGEST = re.compile(r"largest difference of a log-probability (\S+)")


class Shop:
    """A base, two adapters, a fine-tune, and a file of presets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = save_tiny_model(root / "base")
        model = tiny_model()
        self.sources = {
            "math": save_adapter(root / "math", model, seed=1, r=3),
            "code": save_adapter(root / "code", model, seed=2, r=6, target_modules=["q_proj"]),
            "full": save_tiny_model(root / "full", seed=1),
        }
        weights = {"math": {"weight": 0.7}, "code": {"weight": [-0.4, 0.9]}}
        blended = {"method": "task_arithmetic", "sources": weights}
        built = {
            "method": "ties",
            "sources": {"full": {"weight": 0.3, "density": 0.5}, "math": {"weight": 0.5}},
        }
        core = {
            "method": "core_space",
            "sources": {"math": {"weight": 0.7, "density": 0.5}, "code": {"weight": 0.4}},
        }
        documents = [
            {"name": "tutor", **blended},
            {"name": "built", **built},
            {"name": "core", **core},
        ]
        (root / "presets.yaml").write_text(yaml.safe_dump(documents))

    def options(self) -> list[str]:
        """Those that serve would be given."""
        named = [
            word for item in self.sources.items() for word in ("--source", "=".join(map(str, item)))
        ]
        database = f"sqlite:///{self.root / 'absent.db'}"
        presets = str(self.root / "presets.yaml")
        return [*named, "--model", str(self.base), "--presets", presets, "--database-url", database]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """No test writes to it."""
    return Shop(tmp_path_factory.mktemp("shop"))


def export(
    capsys: pytest.CaptureFixture[str], name: str, out: Path, *options: str
) -> tuple[str, float]:
    """What an export that works prints, and the largest difference that it found."""
    assert main(["export", name, str(out), *options]) == 0
    printed = capsys.readouterr().out
    match = LARGEST.search(printed)
    assert match is not None
    return printed, float(match[1])


@pytest.mark.parametrize("name", ["tutor", "built", "core"])
def test_a_checkpoint_in_float32_is_the_live_merge(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """To 1e-4 in every log-probability, blend or variant; and it says so."""
    printed, largest = export(capsys, name, tmp_path / "out", *shop.options(), "--dtype", "float32")
    assert largest < 1e-4
    assert "same top token 100.0%" in printed
    assert not (shop.root / "absent.db").exists()


@pytest.mark.parametrize("name", ["tutor", "core"])
def test_an_adapter_is_the_live_blend(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As checkpoint and as adapter a blend has the same logits, and PEFT loads the latter."""
    printed, largest = export(
        capsys, name, tmp_path / "adapter", *shop.options(), "--as", "adapter"
    )
    assert largest < 1e-4
    assert "--max-lora-rank 16" in printed
    export(capsys, name, tmp_path / "full", *shop.options(), "--dtype", "float32")
    base = AutoModelForCausalLM.from_pretrained(shop.base)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with torch.inference_mode():
        logits, expected = model(input_ids=TOKENS).logits, whole(TOKENS).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "peft"


def test_the_difference_of_rounding_is_told(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """bfloat16 loses something: the report shows it, with the way out."""
    printed, largest = export(
        capsys, "tutor", tmp_path / "out", *shop.options(), "--dtype", "bfloat16"
    )
    assert largest > 1e-3
    assert "--dtype float32" in printed


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (["acme/tiny", "acme/tiny"], "acme/tiny"),
        (["acme/tiny", None], "acme/tiny"),
        (["acme/tiny", "acme/other"], None),
        (["/home/somebody/tiny", "tiny"], None),
    ],
)
def test_an_adapter_records_the_hub_id_of_its_base(
    shop: Shop, tmp_path: Path, recorded: list[str | None], expected: str | None
) -> None:
    """As its sources record it, and never a path of this machine."""
    options = ["--model", str(shop.base), "--presets", str(shop.root / "presets.yaml")]
    for name, base in zip(("math", "code"), recorded, strict=True):
        folder = shutil.copytree(shop.sources[name], tmp_path / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(config))
        options += ["--source", f"{name}={folder}"]
    out = tmp_path / "out"
    database = ["--database-url", f"sqlite:///{tmp_path / 'absent.db'}"]
    rest = ["--as", "adapter", "--no-check", *database]
    assert main(["export", "tutor", str(out), *options, *rest]) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == expected
    written = "".join(path.read_text() for path in (out / "README.md", out / "adapter_config.json"))
    assert str(tmp_path) not in written


def test_a_smaller_rank(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its error is printed, and seen in the comparison; --uniform-rank leaves no patterns."""
    options = [*shop.options(), "--as", "adapter", "--rank", "4", "--uniform-rank"]
    printed, largest = export(capsys, "tutor", tmp_path / "out", *options)
    assert re.search(r"cut to rank 4, which loses \d+\.\d+% of the delta's norm", printed)
    assert "q_proj" in printed
    assert largest > 1e-3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (4, {})


def test_refusals(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason and the way out, and nothing is written."""
    out = str(tmp_path / "out")
    for argv, code, reason in (
        (["built", out, "--as", "adapter"], 1, "export it as a checkpoint"),
        (["nobody", out], 1, "no preset nobody"),
        (["tutor@3", out], 1, "no preset tutor@3"),
        (["tutor@x", out], 1, "PRESET@REVISION"),
        (["tutor", out, "--rank", "4"], 2, "--as adapter"),
        (["tutor", out, "--as", "adapter", "--rank", "0"], 2, "at least 1"),
    ):
        assert main(["export", *argv, *shop.options()]) == code
        assert reason in capsys.readouterr().err
    assert main(["export", "tutor", out, "--url", "http://127.0.0.1:9"]) == 1
    assert "no server answers at http://127.0.0.1:9" in (told := capsys.readouterr().err)
    assert "--model" in told
    assert os.listdir(tmp_path) == []


@contextmanager
def catalog_of(shop: Shop, folder: Path) -> Iterator[tuple[Catalog, str]]:
    """A catalog on a database in a folder, with the shop's adapters and two revisions of tutor."""
    url = f"sqlite:///{folder / 'catalog.db'}"
    store = PresetStore(url)
    base = open_base("base", shop.base, "float32", lambda what, done, total: None).base
    catalog = Catalog(store, base, policy=OPEN_POLICY, location=str(shop.base))
    catalog.load()
    for name in ("math", "code"):
        shutil.copytree(shop.sources[name], folder / name)
        catalog.add_source(name, folder / name)
    both = {"math": {"weight": 0.5}, "code": {"weight": 0.25}}
    catalog.create(preset(sources=both), edit=Edit())
    catalog.patch("tutor", {"sources": {"math": {"weight": 0.9}}}, edit=Edit())
    try:
        yield catalog, url
    finally:
        catalog.close()
        store.close()


def test_from_the_database(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any kept revision, also after the folder of a source is gone: its content was kept."""
    with catalog_of(shop, tmp_path) as (catalog, url):
        expected = {n: catalog.preset("tutor", n).digest for n in (1, 2)}
    shutil.rmtree(tmp_path / "math")
    options = ["--model", str(shop.base), "--database-url", url, "--dtype", "float32"]
    for label, digest in (("tutor", expected[2]), ("tutor@1", expected[1])):
        printed, largest = export(capsys, label, tmp_path / label, *options)
        assert digest in printed
        assert largest < 1e-4


def test_from_a_server(
    shop: Shop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server, which the environment may name, tells recipe and folders, that of the base to
    those who have its admin key; a folder that changed since is refused.
    """
    engine = ScriptedEngine()
    keys = {"api_key": ["secret"], "admin_key": ["root:admin"]}
    with catalog_of(shop, tmp_path) as (catalog, _):
        digest = catalog.preset("tutor").digest
        with listening(make_app(engine, catalog, **keys), engine) as server:
            monkeypatch.setenv("MERGESERVE_URL", server.url)
            options = ["--as", "adapter"]
            assert main(["export", "tutor", str(tmp_path / "out"), *options]) == 1
            assert "key" in capsys.readouterr().err
            with_key = [*options, "--api-key", "secret"]
            assert main(["export", "tutor", str(tmp_path / "out"), *with_key]) == 1
            assert "--admin-key" in capsys.readouterr().err
            named = ["--url", server.url, "--model", str(shop.base)]
            export(capsys, "tutor", tmp_path / "named", *named, *with_key)
            monkeypatch.setenv("MERGESERVE_ADMIN_KEY", "root:admin")
            printed, largest = export(capsys, "tutor", tmp_path / "out", *options)
            assert digest in printed
            assert largest < 1e-4
            shutil.rmtree(tmp_path / "math")
            shutil.copytree(shop.sources["code"], tmp_path / "math")
            assert main(["export", "tutor", str(tmp_path / "again"), *options]) == 1
            assert "was changed" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the address."""
    assert main(["export", "tutor", str(tmp_path / "out"), "--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9" in error
    assert error.count("\n") == 1
