"""The examples that the demo serves are what their cards and the documents say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merging.adapter import read_adapter
from merging.checkpoint import checkpoint_digest, read_header
from scripts.demo_data import make_skills
from server.__main__ import main
from server.commands.prompts_file import read_prompts
from server.demo import EXAMPLES, demo_presets, demo_sources, ensure_demo_model
from server.presets.document import PresetDocument
from server.settings_loading import load_settings
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_BYTES = 3_000_000
SOURCES = demo_sources()
PRESETS: list[dict[str, Any]] = yaml.safe_load(demo_presets().read_text())


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((SOURCES[name] / "adapter_config.json").read_text())
    return config


def test_every_skill_has_its_adapter() -> None:
    """There is one adapter per skill of the generated data, under the skill's name."""
    assert sorted(SOURCES) == sorted(make_skills())


@pytest.mark.parametrize("name", SOURCES)
def test_adapter_is_small_and_bf16(name: str) -> None:
    """A committed adapter is at most 3 MB of bf16 in safetensors, and nothing lies beside it."""
    weights = SOURCES[name] / "adapter_model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    assert {entry.dtype for entry in read_header(weights).entries.values()} == {"BF16"}
    assert {path.name for path in SOURCES[name].iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("name", SOURCES)
def test_adapter_names_its_base(name: str) -> None:
    """An adapter carries the name of its base and the digest of the base's content."""
    adapter = read_adapter(SOURCES[name])
    assert adapter.base_name == BASE_NAME
    assert adapter.base_digest is not None
    assert adapter.base_digest.startswith("sha256:")
    assert adapter.base_digest in (SOURCES[name] / "README.md").read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_adapter_has_a_card(name: str) -> None:
    """A card says what the adapter was trained on, what it scores, and what its base is."""
    card = (SOURCES[name] / "README.md").read_text()
    for part in ("rank", "alpha", "seed", "held out", "loss", "score", "4-bit", "demo_data"):
        assert part in card.lower(), part


@pytest.mark.parametrize("name", SOURCES)
def test_config_is_deterministic(name: str) -> None:
    """A configuration has sorted lists and no path of the machine that it was trained on."""
    config = config_of(name)
    assert config["base_model_name_or_path"] == BASE_NAME
    lists = [value for value in config.values() if isinstance(value, list)]
    assert lists == [sorted(value) for value in lists]
    assert not [value for value in config.values() if str(value).startswith(("/", "~", "."))]


def test_adapters_differ() -> None:
    """The adapters differ in rank, scaling and targets: rsLoRA and patterns are among them."""
    configs = [config_of(name) for name in SOURCES]
    assert len({config["r"] for config in configs}) >= 4
    assert len({tuple(config["target_modules"]) for config in configs}) >= 4
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] and config["alpha_pattern"] for config in configs)


def test_adapters_are_of_one_base() -> None:
    """All adapters were trained on the same base."""
    assert len({read_adapter(path).base_digest for path in SOURCES.values()}) == 1


@pytest.mark.demo
def test_adapters_are_of_the_demo_model() -> None:
    """The base digest in the adapters is the digest of the demo model as it is made here."""
    expected = checkpoint_digest(ensure_demo_model())
    assert {read_adapter(path).base_digest for path in SOURCES.values()} == {expected}


def test_presets_have_names_of_their_own() -> None:
    """There are at least six presets, and no name is also another preset's or an adapter's."""
    names = [document["name"] for document in PRESETS]
    assert len(names) >= 6
    assert len({*names, *SOURCES, "base"}) == len(names) + len(SOURCES) + 1


@pytest.mark.parametrize("document", PRESETS, ids=lambda document: document["name"])
def test_preset_uses_adapters_that_exist(document: dict[str, Any]) -> None:
    """A preset names adapters that are here, says what it is for, and is a valid document."""
    assert document["description"]
    assert set(document["sources"]) - {"base"} <= set(SOURCES)
    PresetDocument.model_validate(document).recipe()


def test_presets_show_what_recipes_can() -> None:
    """Among the presets are both methods, a negation, a gradient, a filter, and three sources."""
    weights = [source["weight"] for preset in PRESETS for source in preset["sources"].values()]
    methods = {preset.get("method", "task_arithmetic") for preset in PRESETS}
    assert methods >= {"linear", "task_arithmetic"}
    assert any(isinstance(weight, (int, float)) and weight < 0 for weight in weights)
    assert any(isinstance(weight, list) and isinstance(weight[0], float) for weight in weights)
    assert any(isinstance(weight, list) and isinstance(weight[0], dict) for weight in weights)
    assert any(len(preset["sources"]) >= 3 for preset in PRESETS)


def test_document_covers_every_example() -> None:
    """The page of measurements has a row for every adapter and every preset."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "demo-adapters.md").read_text()
    for name in [*SOURCES, *(document["name"] for document in PRESETS)]:
        assert f"| {name} |" in page, name


def test_prompts_are_held_out_and_tagged() -> None:
    """The file for `compare` has prompts of two skills with references, all held out of training,
    and `compare` reads it.
    """
    cases = read_prompts(EXAMPLES / "held_out.jsonl")
    found = [json.loads(line) for line in (EXAMPLES / "held_out.jsonl").read_text().splitlines()]
    assert len(cases) == len(found)
    skills = make_skills()
    assert {case["tag"] for case in found} == {"sql", "json"}
    for case in found:
        held_out = {(example.prompt, example.answer) for example in skills[case["tag"]].held_out}
        assert (case["prompt"], case["reference"]) in held_out


def test_recipe_merges(tmp_path: Path) -> None:
    """The recipe is merged with what its first lines say, into another checkpoint than the base."""
    save_tiny_model(tmp_path / "base")
    sources = []
    for seed, name in enumerate(("math", "code")):
        save_adapter(tmp_path / name, tiny_model(), seed=seed)
        sources += ["--source", f"{name}={tmp_path / name}"]
    recipe, base, out = str(EXAMPLES / "recipe.yaml"), str(tmp_path / "base"), tmp_path / "out"
    assert main(["merge", recipe, str(out), "--model", base, *sources]) == 0
    assert checkpoint_digest(out) != checkpoint_digest(tmp_path / "base")


def test_settings_can_be_used(tmp_path: Path) -> None:
    """The file of options is one that `serve --config` takes, also with its comments taken away
    from the options that need no other file.
    """
    text = (EXAMPLES / "mergeserve.yaml").read_text()
    for option in ("kv_memory", "variant_memory", "defaults"):
        text = text.replace(f"# {option}:", f"{option}:")
    path = tmp_path / "mergeserve.yaml"
    path.write_text(text)
    settings = load_settings({"config": path})
    assert [source.name for source in settings.source] == ["math", "code"]
    assert settings.sampling_defaults.temperature == 0.7
