"""Ensembles on a real engine through HTTP, against the same models one after the other."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from server.app import create_app
from server.settings import Settings
from tests.adapters import save_adapter
from tests.ensembles import Logits, greedy, model_logits, prompt_log_likelihood
from tests.models import save_tiny_model, tiny_model
from tests.server.api.scripted import Harness, ids, running, sse_events

PROMPT = list(ids("the quick brown fox"))
NUM_TOKENS = 10
ADAPTERS = ("math", "code", "sql")
CHECKPOINTS = ("ft1", "ft2")
RULES = ("task_arithmetic", "log_pool", "linear_pool")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, adapters, two checkpoints, and an adapter that overflows."""
    root = tmp_path_factory.mktemp("files")
    save_tiny_model(root / "tiny")
    for seed, name in enumerate(ADAPTERS):
        save_adapter(root / name, tiny_model(), seed=seed, std=0.2, r=2 + seed)
    save_adapter(root / "huge", tiny_model(), seed=9, std=1e18)
    for seed, name in enumerate(CHECKPOINTS, start=1):
        tiny_model(seed=seed).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def models(files: Path) -> Mapping[str, Logits]:
    """Every model by name, in transformers and PEFT."""
    adapted = {
        name: PeftModel.from_pretrained(tiny_model(), files / name).eval() for name in ADAPTERS
    }
    whole = {name: tiny_model(seed=seed) for seed, name in enumerate(CHECKPOINTS, start=1)}
    return {n: model_logits(m) for n, m in {"base": tiny_model(), **adapted, **whole}.items()}


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A server with all of them as sources."""
    folder = tmp_path_factory.mktemp("server")
    settings = Settings(
        model=str(files / "tiny"),
        dtype="float32",
        device="cpu",
        source=[f"{name}={files / name}" for name in (*ADAPTERS, *CHECKPOINTS, "huge")],
        source_dir=[str(files)],
        database_url=f"sqlite:///{folder / 'presets.db'}",
        max_rows=8,
        kv_memory=0.01,
        variant_memory=0.1,
    )  # type: ignore[arg-type]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        yield harness


@pytest.fixture
def api(server: Harness) -> Iterator[Harness]:
    """The server, whose presets go after the test."""
    yield server
    for document in server.get("/v1/presets").json()["data"]:
        server.request("DELETE", f"/v1/presets/{document['name']}")


def create(api: Harness, weights: Mapping[str, float], name: str = "tutor", **fields) -> None:
    sources = {source: {"weight": weight} for source, weight in weights.items()}
    response = api.post("/v1/presets", {"name": name, "sources": sources, **fields})
    assert response.status_code == 201, response.text


def ask(api: Harness, model: str = "tutor", **fields) -> dict:
    """The greedy continuation of the prompt."""
    options = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "logprobs": 0}
    response = api.complete(model=model, ignore_eos=True, **{**options, **fields})
    assert response.status_code == 200, response.text
    answer: dict = response.json()
    return answer


def refused(api: Harness, status: int = 400, model: str = "tutor", **fields) -> dict:
    response = api.complete(model=model, **{"prompt": PROMPT, **fields})
    assert response.status_code == status, response.text
    error: dict = response.json()["error"]
    return error


def text(answer: dict) -> str:
    said: str = answer["choices"][0]["text"]
    return said


def log_probs(answer: dict) -> list[float]:
    found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
    return found


def decoded(api: Harness, tokens: list[int]) -> str:
    said: str = api.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    return said


def needed(models: Mapping[str, Logits], weights: Mapping[str, float]) -> dict[str, Logits]:
    return {name: models[name] for name in ("base", *weights)}


MEMBERS = {
    "adapters": {"math": 0.5, "code": 0.4, "sql": 0.3},
    "checkpoints": {"ft1": 0.5, "ft2": 0.3},
    "both": {"math": 0.6, "ft1": 0.7},
}


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("rule", RULES)
def test_it_is_what_the_models_give_one_by_one(api, models, rule, kind):
    """Greedy text is identical and combined log-probabilities are equal to 1e-4, for every rule,
    with adapters and checkpoints as members.
    """
    weights = MEMBERS[kind]
    create(api, weights, ensemble={"rule": rule})
    answer = ask(api, "tutor:ensemble")
    tokens, expected, lead = greedy(rule, needed(models, weights), weights, PROMPT, NUM_TOKENS)
    assert lead > 1e-3, "the greedy text hangs on rounding"
    assert text(answer) == decoded(api, tokens)
    assert log_probs(answer) == pytest.approx(expected, abs=1e-4)
    provenance = answer["mergeserve"]
    assert (provenance["mode"], provenance["path"], provenance["rule"]) == (
        "ensemble",
        "ensemble",
        rule,
    )
    assert provenance["preset"] == "tutor"
    assert "twin" not in provenance


@pytest.mark.parametrize(
    ("weights", "alone"),
    [
        ({"math": 1.0, "code": 0.0}, "math"),
        ({"math": 0.0, "ft1": 1.0}, "ft1"),
        ({"math": 0.0, "ft1": 0.0}, "base"),
    ],
)
def test_it_reduces_to_one_model(api, weights, alone):
    """lambda = (1, 0, ...) is that member and lambda = 0 the base, to the bit."""
    create(api, weights)
    answer, expected = ask(api, "tutor:ensemble"), ask(api, alone)
    assert text(answer) == text(expected)
    assert log_probs(answer) == log_probs(expected)
    assert answer["usage"]["mergeserve"]["members"] == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alone", ["math", "ft1", "tutor"])
def test_equal_members_are_one(api, rule, alone):
    """K members with the same weights, adapters, checkpoints or presets, are that model."""
    create(api, {"math": 0.4, "code": 0.3})
    members = {f"m{i}": {"model": alone, "weight": 0.25 * (i + 1)} for i in range(3)}
    extension = {"mode": "ensemble", "rule": rule, "members": members}
    if rule == "task_arithmetic":
        members["m2"]["weight"] = 0.25  # they sum to 1
    answer, expected = ask(api, "base", mergeserve=extension), ask(api, alone)
    assert text(answer) == text(expected)
    assert log_probs(answer) == pytest.approx(log_probs(expected), abs=1e-5)


def test_the_temperature_of_members_or_of_the_whole(api, models):
    """With temperature_order "before" tokens are drawn from the mean of tempered members, and
    log-probabilities are those of temperature 1 all the same.
    """
    weights = {"math": 0.5, "code": 0.5}
    create(api, weights, ensemble={"rule": "linear_pool", "temperature_order": "before"})
    answer = ask(api, "tutor:ensemble", temperature=0.7, seed=3, logprobs=1, max_tokens=1)
    _, expected, _ = greedy("linear_pool", needed(models, weights), weights, PROMPT, 1)
    (best,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert max(best.values()) == pytest.approx(expected[0], abs=1e-4)
    error = refused(api, model="tutor:ensemble", temperature=0)
    assert "needs a temperature above 0" in error["message"]
    assert error["param"] == "temperature"


def test_drawn_from_tempered_members(api, models):
    """At a very low temperature, members that are tempered first vote: the token of the heavier
    one wins, though the mean of both distributions prefers another.
    """
    weights = {"math": 0.51, "code": 0.49}
    create(api, weights, ensemble={"rule": "linear_pool", "temperature_order": "before"})
    extension = {"mode": "ensemble"}
    options = {"temperature": 1e-3, "max_tokens": 1, "mergeserve": extension, "top_k": 1}
    own = int(models["math"](PROMPT).argmax())
    assert text(ask(api, **options)) == decoded(api, [own])


def test_a_member_with_a_prompt_of_its_own(api, models):
    """Rows at different positions: guidance away from what the base says after another prompt, of
    another length, equals the same done with two models.
    """
    create(api, {"math": 0.5})
    negative = "a much longer prompt, which nobody would want to be continued"
    members = {"negative": {"model": "base", "weight": -0.7, "prompt": negative}}
    extension = {"mode": "ensemble", "members": members}
    answer = ask(api, mergeserve=extension)
    run = {"base": models["base"], "math": models["math"], "negative": models["base"]}
    own = list(ids(negative))
    weights = {"math": 0.5, "negative": -0.7}
    tokens, expected, _ = greedy(
        "task_arithmetic", run, weights, PROMPT, NUM_TOKENS, {"negative": own}
    )
    assert text(answer) == decoded(api, tokens)
    assert log_probs(answer) == pytest.approx(expected, abs=1e-4)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(PROMPT)
    assert usage["completion_tokens"] == NUM_TOKENS
    assert usage["mergeserve"] == {
        "members": 3,
        "member_prompt_tokens": 2 * len(PROMPT) + len(own),
        "member_forwards": 3 * NUM_TOKENS,
    }
    assert answer["mergeserve"]["twin"] == "approximate"


def test_the_base_may_read_another_prompt(api, models):
    """Classifier-free guidance in the form of task arithmetic: the base row is the unconditional
    one, and its prompt is its own.
    """
    create(api, {"math": 1.5})
    extension = {"mode": "ensemble", "members": {"base": {"prompt": "x"}}}
    answer = ask(api, mergeserve=extension)
    tokens, expected, _ = greedy(
        *("task_arithmetic", needed(models, {"math": 1.5}), {"math": 1.5}, PROMPT, NUM_TOKENS),
        {"base": list(ids("x"))},
    )
    assert text(answer) == decoded(api, tokens)
    assert log_probs(answer) == pytest.approx(expected, abs=1e-4)


def test_system_prompts_are_for_conversations(api):
    """A member's system prompt takes the place of the conversation's; an empty one takes it away.
    Where there is no conversation, or a prompt would replace one, it is refused.
    """
    create(api, {"math": 0.5})

    def chat(*messages: tuple[str, str], **member) -> dict:
        extension = {"mode": "ensemble", "members": {"base": member}} if member else None
        body = {"messages": [{"role": r, "content": c} for r, c in messages], "temperature": 0}
        options = {"model": "tutor:ensemble", "max_tokens": 6, "logprobs": True}
        response = api.post("/v1/chat/completions", {**body, **options, "mergeserve": extension})
        return {"status": response.status_code, **response.json()}

    def logprobs(answer: dict) -> dict[str, float]:
        (choice,) = answer["choices"]
        return {
            f"{i} {t['token']}": t["logprob"] for i, t in enumerate(choice["logprobs"]["content"])
        }

    def same(answer: dict) -> Any:  # what was found in the prefix cache moves the rounding
        return pytest.approx(logprobs(answer), abs=1e-5)

    asks, calm, loud = ("user", "hi"), ("system", "calm"), ("system", "loud")
    whole = chat(calm, asks, system="loud")
    assert whole["status"] == 200
    assert logprobs(whole) != same(chat(calm, asks))
    assert logprobs(chat(loud, asks, system="loud")) == same(chat(loud, asks))
    assert logprobs(chat(asks, system="")) == same(chat(asks))
    assert chat(asks, prompt="x")["status"] == 400
    error = refused(api, mergeserve={"mode": "ensemble", "members": {"base": {"system": "loud"}}})
    assert "use /v1/chat/completions" in error["message"]


def test_each_members_own_log_probabilities(api, models):
    """members_top_k gives what each member by itself says of every token, in both shapes."""
    weights = {"math": 0.5, "code": 0.4}
    create(api, weights)
    extension = {"mode": "ensemble", "members_top_k": 2}
    shown = ask(api, mergeserve=extension)["choices"][0]["logprobs"]
    tokens, _, _ = greedy("task_arithmetic", needed(models, weights), weights, PROMPT, NUM_TOKENS)
    assert shown["members"].keys() == {"base", "math", "code"}
    for name, own in shown["members"].items():
        expected = [
            torch.from_numpy(models[name]([*PROMPT, *tokens[:i]])).log_softmax(-1)[tokens[i]].item()
            for i in range(NUM_TOKENS)
        ]
        assert own["token_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert all(len(top) in (2, 3) for top in own["top_logprobs"])
    chat = api.chat("hi", model="tutor", max_tokens=2, logprobs=True, mergeserve=extension).json()
    for entry in chat["choices"][0]["logprobs"]["content"]:
        assert entry["members"].keys() == {"base", "math", "code"}
        assert all(len(own["top_logprobs"]) == 2 for own in entry["members"].values())
    assert "members" not in ask(api, "tutor:ensemble")["choices"][0]["logprobs"]
    without = {"mode": "merge", "members_top_k": 2}
    assert "a merge has no members" in refused(api, logprobs=1, mergeserve=without)["message"]
    assert "needs logprobs" in refused(api, mergeserve=extension)["message"]


def test_a_stream_of_an_ensemble(api):
    """A stream says the same as the whole answer, names its rule at the beginning and the end, and
    ends with the members' usage.
    """
    create(api, {"math": 0.5, "ft1": 0.4}, mode="ensemble")
    body = {"model": "tutor", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    response = api.post("/v1/completions", {**body, **options})
    assert response.headers["X-Mergeserve-Preset"].startswith("tutor@")
    *chunks, last = [json.loads(data) for data in sse_events(response.text)[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text(ask(api))
    assert chunks[0]["mergeserve"] == chunks[-1]["mergeserve"] == last["mergeserve"]
    assert last["mergeserve"]["rule"] == "task_arithmetic"
    assert last["usage"]["mergeserve"]["member_forwards"] == 3 * NUM_TOKENS


def test_choices_and_seeds(api):
    """The choices of an ensemble differ, and a seed repeats them, alone or beside others."""
    create(api, {"math": 0.5, "code": 0.4}, mode="ensemble")
    options = {"temperature": 1.0, "seed": 5, "n": 4, "logprobs": None}
    first, again = ask(api, **options), ask(api, **options)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) > 1
    assert first["usage"]["prompt_tokens"] == len(PROMPT)


def test_a_member_that_overflows_is_named(api):
    """NaN in one member fails that request with the member's name, and the rest go on."""
    create(api, {"math": 0.5, "huge": 0.5}, mode="ensemble")
    create(api, {"math": 0.5, "code": 0.5}, "sound", mode="ensemble")
    expected = text(ask(api, "sound"))
    with ThreadPoolExecutor(4) as threads:
        sound = [threads.submit(ask, api, "sound") for _ in range(3)]
        failed = threads.submit(refused, api, 500)
        assert "member 'huge' gave logits that are not finite" in failed.result()["message"]
        assert [text(each.result()) for each in sound] == [expected] * 3


def test_an_ensemble_that_cannot_fit_is_refused(api):
    """A group of more rows than the server has is refused before it starts, with both numbers."""
    members = {f"m{i}": {"model": "math", "weight": 1.0} for i in range(9)}
    extension = {"mode": "ensemble", "rule": "log_pool", "members": members}
    error = refused(api, model="base", mergeserve=extension)
    assert "an ensemble of 9 rows cannot run: the server has 8 (--max-rows)" in error["message"]


def test_edits_while_ensembles_run(api):
    """Every answer is that of the revision that it names, in mode ensemble too."""
    expected = {}
    create(api, {"math": 0.5, "code": 0.5}, mode="ensemble")
    weights = {1: 0.5, 0: -0.8}
    for parity in (0, 1):
        api.request("PATCH", "/v1/presets/tutor", json=patch(weights[parity]))
        expected[weights[parity]] = text(ask(api))
    assert len(set(expected.values())) == 2
    stop, answers = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            answers.append(ask(api))

    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(load) for _ in range(2)]
        for index in range(12):
            api.request("PATCH", "/v1/presets/tutor", json=patch(weights[index % 2]))
        stop.set()
        for each in loads:
            each.result()
    assert answers
    documents = {d["revision"]: d for d in api.get("/v1/presets/tutor/revisions").json()["data"]}
    for answer in answers:
        document = documents[answer["mergeserve"]["revision"]]
        assert text(answer) == expected[document["sources"]["math"]["weight"]]


def patch(weight: float) -> dict:
    return {"sources": {"math": {"weight": weight}}}


def test_weights_from_the_prompt(api, models):
    """auto:prompt_perplexity is the softmax of the sources' mean log-likelihoods of the prompt, in
    both modes, and the answer carries the weights; with them given it is the same answer.
    """
    create(api, {"math": 0.5, "code": 0.4, "sql": 0.3})
    scores = {name: prompt_log_likelihood(models[name], PROMPT) for name in ADAPTERS}
    total = sum(2.718281828459045 ** (score / 0.5) for score in scores.values())
    expected = {n: 2.718281828459045 ** (score / 0.5) / total for n, score in scores.items()}
    for mode in ("ensemble", "merge"):
        auto = {"weights": "auto:prompt_perplexity", "weights_temperature": 0.5, "mode": mode}
        answer = ask(api, mergeserve=auto)
        used = answer["mergeserve"]["weights"]
        assert used == pytest.approx(expected, abs=1e-4)
        same = ask(api, mergeserve={"weights": used, "mode": mode})
        assert text(answer) == text(same)
        assert answer["mergeserve"]["digest"] == same["mergeserve"]["digest"]
        assert answer["mergeserve"]["revision"] == same["mergeserve"]["revision"]


@pytest.mark.parametrize("mode", ["merge", "ensemble"])
def test_routing(api, models, mode):
    """auto:route runs the source that predicts the prompt best, alone, and reads little twice."""
    create(api, {"math": 0.5, "code": 0.4, "ft1": 0.3})
    scores = {n: prompt_log_likelihood(models[n], PROMPT) for n in ("math", "code", "ft1")}
    best = max(scores, key=scores.__getitem__)
    answer = ask(api, mergeserve={"weights": "auto:route", "mode": mode})
    assert answer["mergeserve"]["weights"] == {name: float(name == best) for name in scores}
    alone = ask(api, best)
    assert text(answer) == text(alone)
    assert answer["mergeserve"]["digest"] == alone["mergeserve"]["digest"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(PROMPT) - 16


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        ("base", {}, "the base has no weights"),
        ("math", {}, "math has no weights"),
        ("tutor", {"prompt": ["one", "two"]}, "the request has 2"),
        ("tutor", {"mergeserve": {"weights": "auto:magic"}}, "auto:prompt_perplexity"),
        (
            "tutor",
            {"mergeserve": {"weights": "auto:route", "weights_temperature": 1.0}},
            "needs .weights.: .auto:prompt_perplexity",
        ),
        ("tutor", {"mergeserve": {"weights": "auto:route", "rule": "log_pool"}}, "a merge has"),
    ],
)
def test_weights_that_no_prompt_can_choose(api, model, fields, words):
    """What has no weights, or more than one prompt, is refused with the reason."""
    create(api, {"math": 0.5})
    options = {"mergeserve": {"weights": "auto:prompt_perplexity"}, **fields}
    assert re.search(words, refused(api, model=model, **options)["message"])


def test_metrics_say_how_far_members_are_apart(api):
    """Divergence and agreement of an ensemble's members, by preset and mode; a merge has none."""
    create(api, {"math": 0.5, "code": 0.4}, "measured")
    ask(api, "measured")
    assert "mergeserve_ensemble_member_divergence_nats_count{" not in metrics(api, "measured")
    ask(api, "measured:ensemble", max_tokens=20)
    lines = metrics(api, "measured")
    label = '{mode="ensemble",preset="measured"} 2.0'
    assert f"mergeserve_ensemble_member_divergence_nats_count{label}" in lines
    assert f"mergeserve_ensemble_member_agreement_ratio_count{label}" in lines


def metrics(api: Harness, preset: str) -> str:
    return "\n".join(line for line in api.get("/metrics").text.splitlines() if preset in line)
