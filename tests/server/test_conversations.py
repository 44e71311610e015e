"""A checkpoint with a conversation of its own, over HTTP."""

import json
import shutil
from collections.abc import Iterator

import pytest
from safetensors.torch import load_file, save_file

from server.app import create_app
from server.settings import Settings
from tests.models import save_tiny_model
from tests.server.api.scripted import Harness, running

END = 50
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[Harness]:
    """A base, and a fine-tune of it with a template and a stop token of its own."""
    root = tmp_path_factory.mktemp("models")
    save_tiny_model(root / "base")
    shutil.copytree(root / "base", root / "instruct")
    (root / "instruct" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, END]})
    )
    (root / "instruct" / "chat_template.jinja").write_text("<eos>{{ messages[0].content }}")
    weights = root / "instruct" / "model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    settings = Settings(
        model=str(root / "base"),
        dtype="float32",
        device="cpu",
        source=[f"instruct={root / 'instruct'}"],
        database_url=f"sqlite:///{root / 'presets.db'}",
        kv_memory=0.01,
    )  # type: ignore[call-arg]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        sources = {"instruct": {"weight": 1.0}}
        for name, own in (("plain", {}), ("own", {"conversation": "instruct"})):
            document = {"name": name, "method": "linear", "sources": sources, **own}
            assert harness.post("/v1/presets", document).status_code == 201
        yield harness


@pytest.mark.parametrize(
    ("model", "num_prompt", "finish"),
    [
        ("instruct", 2, "stop"),
        ("instruct:merge", 2, "stop"),
        ("own", 2, "stop"),
        ("own:ensemble", 2, "stop"),
        ("plain", 21, "length"),
        ("base", 21, "length"),
    ],
)
def test_template_and_stop_tokens(api: Harness, model: str, num_prompt: int, finish: str) -> None:
    """Called by its name, or by a preset that names it, a source has its own template and stops at
    its own tokens; `/tokenize` writes the same prompt. Other presets are as the base.
    """
    body = {"model": model, "messages": MESSAGES}
    response = api.post(
        "/v1/chat/completions",
        {**body, "max_tokens": 4, "temperature": 0, "logit_bias": {str(END): 100}},
    )
    answer = response.json()
    assert answer["usage"]["prompt_tokens"] == num_prompt
    assert answer["choices"][0]["finish_reason"] == finish
    assert api.post("/tokenize", body).json()["count"] == num_prompt


def test_completions_stop_there_too(api: Harness) -> None:
    """Stop tokens do not need a conversation; `ignore_eos` and `min_tokens` hold for them."""
    body = {"model": "instruct", "prompt": "x", "max_tokens": 4, "logit_bias": {str(END): 100}}
    reasons = [
        api.post("/v1/completions", {**body, **fields}).json()["choices"][0]["finish_reason"]
        for fields in ({}, {"ignore_eos": True}, {"min_tokens": 4})
    ]
    assert reasons == ["stop", "length", "length"]


def test_a_comparison(api: Harness) -> None:
    """All candidates read the same prompts, which a note tells; each stops where it stops."""
    body = {"candidates": ["base", "instruct"], "messages": [MESSAGES], "max_tokens": 4}
    result = api.post("/v1/compare", {**body, "logit_bias": {str(END): 100}}).json()
    (prompt,) = result["prompts"]
    assert [a["finish_reason"] for a in prompt["answers"]] == ["length", "stop"]
    assert any(note.startswith("instruct has a chat template") for note in result["notes"])


def test_the_source_warns(api: Harness) -> None:
    """Its card, and the explanation of presets that use it, say what differs."""
    for told in (api.get("/v1/sources/instruct"), api.get("/v1/presets/plain/explain")):
        (warning,) = told.json()["warnings"]
        assert "a chat template of its own" in warning
        assert f"({END})" in warning
