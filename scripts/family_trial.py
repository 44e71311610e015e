"""One family, as a tiny random model from files, tried as a base, under an adapter and with a
checkpoint as a source; all of it compared with transformers and PEFT.
"""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient
from peft import LoraConfig, get_peft_model

from merging.blend import Blend
from scripts.families import WINDOW
from server.app import create_app
from server.engine.errors import EngineError
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams
from server.settings import Settings
from tests.families import adapter_targets, load_family, save_family

NUM_TOKENS = 12
MAX_ERROR = 1e-3
LENGTHS = (WINDOW - 3, WINDOW + 1, 3 * WINDOW, 5 * WINDOW)
"""Of the prompts: shorter and longer than the windows."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found. Texts say `yes`, or why not."""

    family: str
    served: str
    attention: str = ""
    text: str = ""
    adapter: str = ""
    checkpoint: str = ""


def try_family(family: str, folder: Path) -> Trial:
    """Make the model of `family` in `folder`, and try it."""
    base = save_family(folder / "base", family)
    try:
        loaded = load_engine(base, EngineOptions(kv_memory=0.01, dtype="float32", device="cpu"))
    except EngineError as error:
        return Trial(family, str(error))
    runner = loaded.engine._runner
    text = _generate(loaded.engine, base)
    reference = load_family(base)
    prompt = _prompt(LENGTHS[-1])
    expected = {
        "lora": _save_adapter(folder / "lora", load_family(base), prompt),
        "half": _save_checkpoint(folder / "tuned", reference, prompt),
    }
    answers = _ask(folder, list(expected), prompt)
    verdicts = {name: _verdict(answers[name], expected[name]) for name in expected}
    attention = "packed" if runner.is_packed else "its own"
    return Trial(family, "yes", attention, text, verdicts["lora"], verdicts["half"])


def _prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, 259, (length,), generator=generator).tolist()


def _generate(engine: Any, base: Path) -> str:
    """Greedy tokens of rows in one batch, and those of transformers' `generate`."""
    prompts = [_prompt(length) for length in LENGTHS]
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    blend = Blend("", (), torch.zeros(0, len(engine._runner._model.linears)))
    requests = [Request((Member(tuple(prompt), blend),), sampling) for prompt in prompts]
    groups = [engine.add(request) for request in requests]
    while engine.scheduler.has_work:
        engine.step()
    model = load_family(base)
    model.generation_config.eos_token_id = None
    for prompt, group in zip(prompts, groups, strict=True):
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False)
        if answer[0, len(prompt) :].tolist() != group.output_tokens:
            return "no: other tokens"
    return "yes"


def _save_adapter(folder: Path, model: Any, prompt: Sequence[int]) -> list[float]:
    """Write a LoRA on every linear of the layers, beside experts on those of attention; PEFT's own
    log-probabilities of the prompt.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=adapter_targets(model)
            ),
        ).eval()
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(folder)
    return _logprobs(tuned, prompt)


def _save_checkpoint(folder: Path, model: Any, prompt: Sequence[int]) -> list[float]:
    """Write a fine-tune of all parameters; log-probabilities halfway between it and the base."""
    base = [parameter.detach().clone() for parameter in model.parameters()]
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), base, strict=True):
            parameter.lerp_(old, 0.5)
    return _logprobs(model, prompt)


@torch.inference_mode()
def _logprobs(model: Any, prompt: Sequence[int]) -> list[float]:
    """Of each token of the prompt after the first."""
    inputs = torch.tensor([list(prompt)])
    rows = model(input_ids=inputs, use_cache=False).logits[0].float().log_softmax(-1)
    found: list[float] = rows[:-1].gather(1, inputs[0, 1:, None])[:, 0].tolist()
    return found


def _ask(folder: Path, names: Sequence[str], prompt: list[int]) -> dict[str, list[float] | str]:
    """The server's log-probabilities under the adapter and under half of the checkpoint."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "base" / file, folder / "tuned")
    settings = Settings(
        model=str(folder / "base"),
        dtype="float32",
        device="cpu",
        source_dir=[str(folder)],
        database_url=f"sqlite:///{folder / 'presets.db'}",
        kv_memory=0.01,
        variant_memory=0.05,
    )
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        while client.get("/readyz").json().get("error", {}).get("code") == "loading":
            pass
        said = {
            "lora": client.post("/v1/sources", json={"name": "lora", "path": "lora"}).text,
            "half": client.post("/v1/sources", json={"name": "tuned", "path": "tuned"}).text,
        }
        half = {"sources": {"tuned": {"weight": 0.5}}}
        said["half"] += client.put("/v1/presets/half", json=half).text
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
        answers: dict[str, list[float] | str] = {}
        for name in names:
            answer = client.post("/v1/completions", json={**body, "model": name})
            if answer.status_code != 200:
                answers[name] = f"{answer.text} {said[name]}"
                continue
            answers[name] = answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:]
    return answers


def _verdict(actual: list[float] | str, expected: Sequence[float]) -> str:
    if isinstance(actual, str):
        return f"no: {actual}"
    error = max(abs(a - b) for a, b in zip(actual, expected, strict=True))
    return "yes" if error <= MAX_ERROR else f"no: log-probabilities differ by {error:.2g}"
