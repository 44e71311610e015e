"""Ensembles on the demo model, against transformers and PEFT in float32."""

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.app import create_app
from server.demo import demo_sources, ensure_demo_model
from server.settings import Settings
from tests.ensembles import Logits, greedy, model_logits
from tests.server.api.scripted import Harness, running

pytestmark = pytest.mark.demo

MEMBERS = {"pirate": 0.5, "sql": 0.4, "whole": 0.3}
PROMPT = "The best way to keep a list of customers is"
NUM_TOKENS = 8
CHANGED = "model.layers.7.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model, two of its adapters, and a checkpoint with one tensor changed."""
    base = ensure_demo_model()
    adapters = demo_sources()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        tensor = model.get_parameter(CHANGED)
        tensor += torch.randn_like(tensor) * tensor.std() * 0.5
    whole = tmp_path_factory.mktemp("whole")
    model.save_pretrained(whole)
    return {"base": base, "pirate": adapters["pirate"], "sql": adapters["sql"], "whole": whole}


@pytest.fixture(scope="module")
def api(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server in float32 with a preset of both kinds of members."""
    settings = Settings(
        model=str(folders["base"]),
        dtype="float32",
        device="cpu",
        source=[f"{name}={folders[name]}" for name in MEMBERS],
        database_url=f"sqlite:///{tmp_path_factory.mktemp('server') / 'presets.db'}",
        max_rows=8,
        kv_memory=0.2,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        sources = {name: {"weight": weight} for name, weight in MEMBERS.items()}
        assert harness.post("/v1/presets", {"name": "mix", "sources": sources}).status_code == 201
        yield harness


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> Mapping[str, Logits]:
    """The same, in transformers and PEFT."""

    def load(name: str) -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_pretrained(
            folders[name], dtype=torch.float32, attn_implementation="eager"
        ).eval()

    found = {"base": load("base"), "whole": load("whole")}
    for name in ("pirate", "sql"):
        found[name] = PeftModel.from_pretrained(load("base"), folders[name]).eval()
    gc.collect()
    return {name: model_logits(model) for name, model in found.items()}


@pytest.mark.parametrize("rule", ["task_arithmetic", "log_pool", "linear_pool"])
def test_it_is_what_the_models_give_one_by_one(
    api: Harness, models: Mapping[str, Logits], folders: dict[str, Path], rule: str
) -> None:
    """Greedy text is identical and combined log-probabilities are equal to 1e-4."""
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    prompt = tokenizer(PROMPT)["input_ids"]
    used = {name: models[name] for name in ("base", *MEMBERS)}
    tokens, expected, lead = greedy(rule, used, MEMBERS, prompt, NUM_TOKENS)
    assert lead > 1e-3, "the greedy text hangs on rounding"
    response = api.complete(
        model="mix",
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        temperature=0,
        logprobs=0,
        ignore_eos=True,
        mergeserve={"mode": "ensemble", "rule": rule},
    )
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["text"] == tokenizer.decode(tokens)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
