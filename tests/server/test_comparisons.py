"""Comparisons on a real engine through HTTP, against transformers and PEFT token by token."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel

from server.app import create_app
from server.settings import Settings
from tests.adapters import save_adapter
from tests.ensembles import Logits, combine, greedy, model_logits, prompt_log_likelihood
from tests.models import save_tiny_model, tiny_model
from tests.server.api.scripted import Harness, ids, running, sse_events, tokenizer

ADAPTERS = ("math", "code")
WEIGHTS = {"math": 0.6, "code": 0.5}
PROMPTS = ["the quick brown fox", "jumps over", "the lazy dog"]
REFERENCES = [" runs", " the moon", " sleeps"]
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, two adapters, and one that overflows."""
    root = tmp_path_factory.mktemp("files")
    save_tiny_model(root / "tiny")
    for seed, name in enumerate(ADAPTERS):
        save_adapter(root / name, tiny_model(), seed=seed, std=0.2, r=2 + seed)
    save_adapter(root / "huge", tiny_model(), seed=9, std=1e18)
    return root


@pytest.fixture(scope="module")
def models(files: Path) -> Mapping[str, Logits]:
    """Base and adapters in transformers and PEFT."""
    adapted = {
        name: PeftModel.from_pretrained(tiny_model(), files / name).eval() for name in ADAPTERS
    }
    return {n: model_logits(m) for n, m in {"base": tiny_model(), **adapted}.items()}


@pytest.fixture(scope="module")
def api(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server with a preset of the two adapters, in its second revision."""
    folder = tmp_path_factory.mktemp("server")
    settings = Settings(
        model=str(files / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"{name}={files / name}" for name in (*ADAPTERS, "huge")],
        database_url=f"sqlite:///{folder / 'presets.db'}",
        max_rows=12,
        kv_memory=0.01,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        for math in (0.2, WEIGHTS["math"]):
            sources = {"math": {"weight": math}, "code": {"weight": WEIGHTS["code"]}}
            response = harness.request("PUT", "/v1/presets/tutor", json={"sources": sources})
            assert response.status_code < 300, response.text
        yield harness


@pytest.fixture(scope="module")
def found(api: Harness) -> dict:
    """The preset and its parts on three prompts."""
    return compare(api, model="tutor", references=REFERENCES, tags=["a", "b", "a"], scorer="exact")


def compare(api: Harness, **fields: object) -> dict:
    body = {"prompts": PROMPTS, "max_tokens": NUM_TOKENS, "ignore_eos": True, **fields}
    response = api.post("/v1/compare", body)
    assert response.status_code == 200, response.text
    result: dict = response.json()
    return result


def log_probs_along(
    models: Mapping[str, Logits], prompt: Sequence[int], text: Sequence[int]
) -> np.ndarray:
    """The ensemble's log-probabilities at each token of a text, [positions, vocab]."""
    return np.stack(
        [
            combine(
                "task_arithmetic",
                {name: model([*prompt, *text[:index]]) for name, model in models.items()},
                WEIGHTS,
            )
            for index in range(len(text))
        ]
    )


def base_log_probs_along(
    models: Mapping[str, Logits], prompt: Sequence[int], text: Sequence[int]
) -> np.ndarray:
    rows = [models["base"]([*prompt, *text[:index]]) for index in range(len(text))]
    return np.stack([row - np.log(np.exp(row - row.max()).sum()) - row.max() for row in rows])


def test_all_parts_of_a_preset_are_compared(found: dict) -> None:
    """Base, sources, merge, ensemble, route, and the revision before, held against the ensemble."""
    roles = [candidate["role"] for candidate in found["candidates"]]
    assert roles == ["base", "source", "source", "merge", "ensemble", "route", "previous"]
    assert found["candidates"][found["reference"]]["role"] == "ensemble"
    assert found["candidates"][found["subject"]]["role"] == "merge"
    assert found["notes"] == []
    assert found["errors"] == []
    forwards = {c["name"]: c["cost"]["forwards_per_token"] for c in found["candidates"]}
    assert forwards == {**dict.fromkeys(forwards, 1.0), "ensemble": 3.0}
    assert all(candidate["cost"]["kv_bytes"] > 0 for candidate in found["candidates"])


def test_answers_are_those_of_the_models(found: dict, models: Mapping[str, Logits]) -> None:
    """The ensemble's greedy text is that of the models one by one."""
    for prompt, shown in zip(PROMPTS, found["prompts"], strict=True):
        tokens, _, _ = greedy("task_arithmetic", models, WEIGHTS, ids(prompt), NUM_TOKENS)
        assert shown["answers"][4]["num_tokens"] == NUM_TOKENS
        assert shown["answers"][4]["tokens"] == list(map(tokenizer().token_text, tokens))


def test_positions_are_those_of_the_models(found: dict, models: Mapping[str, Logits]) -> None:
    """KL both ways, JS, losses: of the base against the ensemble on a given text, to 1e-4."""
    shown = next(
        p for p in found["prompts"][1]["positions"] if p["text"] == "given" and p["candidate"] == 0
    )
    prompt, text = ids(PROMPTS[1]), ids(REFERENCES[1])
    p = log_probs_along(models, prompt, text)
    q = base_log_probs_along(models, prompt, text)
    mean = np.log((np.exp(p) + np.exp(q)) / 2)
    expected = {
        "forward_kl": (np.exp(p) * (p - q)).sum(axis=1),
        "reverse_kl": (np.exp(q) * (q - p)).sum(axis=1),
        "js": ((np.exp(p) * (p - mean)).sum(axis=1) + (np.exp(q) * (q - mean)).sum(axis=1)) / 2,
        "total_variation": np.abs(np.exp(p) - np.exp(q)).sum(axis=1) / 2,
        "logprobs": q[np.arange(len(text)), text],
        "reference_logprobs": p[np.arange(len(text)), text],
    }
    for name, values in expected.items():
        assert np.allclose(shown[name], values, atol=1e-4), name
    loss = found["prompts"][1]["answers"][0]["loss"]
    assert loss == pytest.approx(-expected["logprobs"].mean(), abs=1e-4)


def test_texts_are_read_in_both_directions(found: dict) -> None:
    """Each candidate's own answer, the reference's, and the given one."""
    kinds = {(p["text"], p["candidate"]) for p in found["prompts"][0]["positions"]}
    others = [index for index in range(7) if index != found["reference"]]
    assert kinds == {(kind, c) for kind in ("given", "reference", "candidate") for c in others}


def test_the_twin_of_the_ensemble_is_the_ensemble(found: dict) -> None:
    """The preset's own rule is task arithmetic, so that all there is is linearisation."""
    origin = found["origin"]
    assert origin["rule"]["js"] == pytest.approx(0, abs=1e-6)
    assert origin["linearisation"]["js"] == pytest.approx(origin["total"]["js"], abs=1e-6)
    assert origin["total"]["js"] > 1e-5


def test_every_source_is_left_out_of_merge_and_ensemble(found: dict) -> None:
    """The merge of one source and its ensemble are further from linear or nearer to it."""
    effects = {(e["source"], e["candidate"]) for e in found["blame"]["effects"]}
    assert effects == {(source, c) for source in ADAPTERS for c in (3, 4)}
    assert all(e["gap"] is not None for e in found["blame"]["effects"] if e["candidate"] == 3)


def test_the_route_takes_the_likeliest_source(found: dict, models: Mapping[str, Logits]) -> None:
    """For each prompt the source under which its mean log-likelihood is highest: not the same one
    for all prompts, and the sources' answers differ.
    """
    likeliest = []
    for prompt, shown in zip(PROMPTS, found["prompts"], strict=True):
        scores = [prompt_log_likelihood(models[name], ids(prompt)) for name in ADAPTERS]
        likeliest.append(int(np.argmax(scores)))
        answers = [shown["answers"][index]["text"] for index in (1, 2)]
        assert answers[0] != answers[1]
        route = shown["answers"][5]
        assert route["text"] == answers[likeliest[-1]]
        assert route["weights"] == {n: float(i == likeliest[-1]) for i, n in enumerate(ADAPTERS)}
        assert shown["answers"][4]["weights"] is None
    assert set(likeliest) == {0, 1}
    by_tag: dict[str, list[int]] = {}
    for best, shown in zip(likeliest, found["prompts"], strict=True):
        by_tag.setdefault(shown["tag"], []).append(best)
    for tag, best in by_tag.items():
        counts = {name: best.count(i) for i, name in enumerate(ADAPTERS)}
        order = sorted(counts, key=lambda name: (-counts[name], name))
        taken = ", ".join(f"{counts[name]} to {name}" for name in order if counts[name])
        sentence = f"route sent the '{tag}' prompts, {len(best)} in all: {taken}"
        assert sentence in found["markdown"]


def test_a_source_that_overflows_fails_alone(api: Harness) -> None:
    """Named in the errors; the others are compared."""
    found = compare(api, candidates=["tutor", "huge", "base"])
    (error,) = found["errors"]
    assert error.startswith(f"prompts 1 to {len(PROMPTS)}: huge gave no answer: the model gave")
    assert found["broken"][0]["signs"] == ["no_answers"]
    assert found["candidates"][2]["versus"]["verdict"] is not None


def test_the_same_model_is_not_told_from_itself(api: Harness) -> None:
    """No divergence, the same answers, and a row that both share."""
    found = compare(api, candidates=["tutor", "tutor:merge"])
    versus = found["candidates"][1]["versus"]
    assert versus["same_answers"] == 1
    assert versus["divergences"][0]["forward_kl"] == pytest.approx(0, abs=1e-6)


def test_a_stream_of_a_real_comparison(api: Harness) -> None:
    """Pieces of both candidates, then the result."""
    body = {"prompts": PROMPTS[:1], "candidates": ["base", "tutor:ensemble"], "max_tokens": 4}
    response = api.post("/v1/compare", {**body, "stream": True, "html": True})
    *frames, done = sse_events(response.text)
    assert done == "[DONE]"
    indices = {choice["index"] for frame in map(json.loads, frames) for choice in frame["choices"]}
    assert indices == {0, 1}
    last = json.loads(frames[-1])
    assert last["object"] == "comparison"
    assert "<!doctype html>" in last["html"]
