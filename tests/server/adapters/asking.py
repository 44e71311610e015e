"""Registers sources, asks a server for log-probabilities, and computes them densely."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from merging.adapter import read_adapter
from tests.server.adapters.peft_folders import TOKENS, load
from tests.server.api.scripted import Harness


def register(api: Harness, name: str, path: str, **fields: object) -> dict:
    response = api.request("POST", "/v1/sources", json={"name": name, "path": path, **fields})
    assert response.status_code == 201, response.text
    return response.json()


def ask(api: Harness, model: str, **fields: object) -> torch.Tensor:
    """The log-probabilities of TOKENS but the first."""
    body = {"model": model, "prompt": TOKENS, "max_tokens": 0, "echo": True, "logprobs": 0}
    response = api.request("POST", "/v1/completions", json={**body, **fields})
    assert response.status_code == 200, response.text
    return torch.tensor(response.json()["choices"][0]["logprobs"]["token_logprobs"][1:])


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def of_tensors(base: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> torch.Tensor:
    """The log-probabilities under the base with its tensors changed in place."""
    model = load(base)
    with torch.no_grad():
        change(dict(model.named_parameters()))
        rows = torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0], -1)
    return rows[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]


def low_rank(folder: Path, weight: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for module, own in read_adapter(folder).factors.items():
            tensors[f"{module}.weight"] += weight * own.scale * (own.b @ own.a)

    return change


def dense(base: Path, folder: Path, weight: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        merged = PeftModel.from_pretrained(load(base), folder).merge_and_unload()
        plain = dict(load(base).named_parameters())
        for name, tensor in merged.named_parameters():
            tensors[name] += weight * (tensor - plain[name])

    return change


def refused(api: Harness, path: str, **fields: object) -> str:
    response = api.request("POST", "/v1/sources", json={"name": "x", "path": path, **fields})
    assert response.status_code in (400, 422), response.text
    return response.json()["error"]["message"]
