"""Variants over HTTP: edits, states, cold requests, and mergekit's configurations."""

import gc
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from server.api.compare import prepare
from server.api.compare_schemas import CompareBody
from server.presets.catalog import Edit
from server.presets.policy import Policy
from tests.server.api.live import wait_until
from tests.server.api.scripted import CONFIG, Harness, ScriptedEngine, make_app, running, silent
from tests.server.presets.forge import TIES, VariantWorld
from tests.server.presets.tiny import preset

YAML = {"Content-Type": "application/yaml"}
PATH = "/v1/presets/tutor"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[VariantWorld]:
    world = VariantWorld(tmp_path)
    yield world
    world.forge.gate.set()
    world.close()


@pytest.fixture
def api(world: VariantWorld) -> Iterator[Harness]:
    """An application with the sources math, code and ft, and the variant preset tutor."""
    engine = ScriptedEngine(CONFIG)
    catalog = world.open_with_sources(patience=0.2)
    catalog.seed_presets([preset(**TIES)], "the test")
    with running(make_app(engine, catalog), engine) as harness:
        yield harness


def config(world: VariantWorld, method: str = "ties", weight: float = 0.25) -> dict:
    """A mergekit configuration, with models by their paths."""
    parameters = {"weight": weight, "density": 0.5}
    return {
        "merge_method": method,
        "base_model": str(world.root / "tiny"),
        "models": [{"model": str(world.sources / "ft"), "parameters": parameters}],
    }


def put_yaml(api: Harness, content: object, url: str = PATH, method: str = "PUT"):
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    return api.request(method, url, content=text.encode(), headers=YAML)


def error(response) -> dict:
    return response.json()["error"]


def test_the_path_is_told(api: Harness) -> None:
    """An answer says that a variant made it, and the engine gets those weights."""
    response = api.complete(model="tutor")
    assert response.status_code == 200, response.text
    assert response.json()["mergeserve"]["path"] == "variant"
    assert response.headers["X-Mergeserve-Preset"] == "tutor@1"
    (member,) = api.engine.requests[-1].members
    assert member.weights.digest == response.json()["mergeserve"]["digest"]


def test_a_checkpoint_by_name(api: Harness) -> None:
    """A checkpoint source is listed, called by its name, and belongs to no preset."""
    assert api.get("/v1/sources/ft").json()["kind"] == "checkpoint"
    response = api.complete(model="ft")
    assert response.json()["mergeserve"]["path"] == "variant"
    assert response.json()["mergeserve"]["preset"] is None


def test_respond_async(api: Harness, world: VariantWorld) -> None:
    """202 and building at once; the old revision answers until the new one is built."""
    world.forge.gate.clear()
    headers = {"Prefer": "respond-async"}
    body = {"sources": {"ft": {"weight": 0.9}}}
    response = api.request("PATCH", PATH, json=body, headers=headers)
    assert (response.status_code, response.json()["state"]) == (202, "building")
    assert response.headers["Preference-Applied"] == "respond-async"
    assert api.complete(model="tutor").json()["mergeserve"]["revision"] == 1
    world.forge.gate.set()
    wait_until(lambda: api.get(PATH).json()["state"] == "ready")
    assert api.complete(model="tutor").json()["mergeserve"]["revision"] == 2


def test_cold_requests_wait(api: Harness, world: VariantWorld) -> None:
    """A request for weights that are not there waits for them, others are served meanwhile; too
    long is 503 with Retry-After.
    """
    api.request("PATCH", PATH, json={"sources": {"ft": {"weight": 0.9}}})
    assert api.get(f"{PATH}?revision=1").json()["state"] == "cold"
    world.forge.gate.clear()
    response = api.complete(model="tutor@1")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert error(response)["code"] == "variant_cold"
    assert api.get(f"{PATH}?revision=1").json()["state"] == "building"
    assert api.complete(model="tutor").status_code == 200
    threading.Timer(0.05, world.forge.gate.set).start()
    assert api.complete(model="tutor@1").json()["mergeserve"]["revision"] == 1


@pytest.fixture
def cold(world: VariantWorld) -> Iterator[Harness]:
    """An application with a deadline that comes before its patience ends; tutor@1 is cold."""
    engine = ScriptedEngine(CONFIG)
    catalog = world.open_with_sources(patience=20)
    catalog.seed_presets([preset(**TIES)], "the test")
    catalog.patch("tutor", {"sources": {"ft": {"weight": 0.9}}}, edit=Edit())
    world.forge.gate.clear()
    with running(make_app(engine, catalog, request_timeout=0.4), engine) as harness:
        yield harness


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi", "mergeserve": {"weights": "auto:route"}}),
        ("/v1/loglikelihood", {"texts": ["hi"]}),
    ],
)
def test_the_wait_for_weights_ends_with_the_request(cold: Harness, path: str, body: dict) -> None:
    """--request-timeout bounds it where it is shorter, and the error says that it was this."""
    response = cold.post(path, {"model": "tutor@1", **body})
    assert (response.status_code, error(response)["code"]) == (503, "variant_cold")
    assert (
        "than the 0.4 s that a request may take (--request-timeout)" in error(response)["message"]
    )
    assert int(response.headers["Retry-After"]) >= 1
    assert cold.engine.requests == []


def test_the_wait_for_weights_is_part_of_the_request(cold: Harness, world: VariantWorld) -> None:
    """The rest of --request-timeout is for the answer; if it is too short the error says why."""
    threading.Timer(0.2, world.forge.gate.set).start()
    cold.engine.script = silent
    response = cold.complete(model="tutor@1")
    assert (response.status_code, error(response)["code"]) == (503, "request_timeout")
    assert re.search(
        r"0\.4 s .*, 0\.[23] s of which it waited for weights", error(response)["message"]
    )
    assert len(cold.engine.requests) == 1


@pytest.mark.parametrize("is_in_time", [True, False])
def test_a_comparison_has_the_previous_revision_built(
    api: Harness, world: VariantWorld, is_in_time: bool
) -> None:
    """Its weights went when the next revision served; where they are not there in time it is left
    out, and that is said.
    """
    assert api.complete(model="ft").status_code == 200
    api.request("PATCH", PATH, json={"sources": {"ft": {"weight": 0.9}}})
    assert api.get(f"{PATH}?revision=1").json()["state"] == "cold"
    if not is_in_time:
        world.forge.gate.clear()
    body = CompareBody.model_validate({"model": "tutor", "prompts": ["a"]})
    service = api.app.state.lifecycle.service
    lineup = api._portal.call(prepare, service, body).lineup  # type: ignore[attr-defined]
    names = [candidate.name for candidate in lineup.candidates]
    assert names == ["base", "ft", "merge", "ensemble", *(["tutor@1"] if is_in_time else [])]
    said = [note for note in lineup.notes if note.startswith("tutor@1 is not compared: ")]
    assert len(said) == (not is_in_time)


@pytest.mark.parametrize("model", ["tutor:ensemble", "tutor:merge"])
def test_a_comparison_keeps_no_weights_that_a_prompt_chooses_among(
    world: VariantWorld, model: str
) -> None:
    """They are asked for again when a prompt has chosen: until then they may go."""
    catalog = world.open_with_sources(policy=Policy("weights", "variant", serve_sources=True))
    sources = {"math": {"weight": 1.0, "density": 0.5}, "ft": {"weight": 0.0, "density": 0.5}}
    catalog.create(preset(method="ties", sources=sources), edit=Edit())
    digest = catalog.resolve("ft").members[0].weights.digest
    extension = {"weights": "auto:prompt_perplexity"}
    candidates = ["base", {"model": model, "mergeserve": extension}]
    body = CompareBody.model_validate({"candidates": candidates, "prompts": ["a"]})
    engine = ScriptedEngine(CONFIG)
    with running(make_app(engine, catalog), engine) as api:
        service = api.app.state.lifecycle.service
        comparison = api._portal.call(prepare, service, body)  # type: ignore[attr-defined]
    world.variants._shelf._let_go(digest)
    gc.collect()
    assert digest not in {variant.digest for variant in world.forge.live}
    assert len(comparison.lineup.candidates) == 2


def test_tokens_need_no_weights(api: Harness, world: VariantWorld) -> None:
    """Tokenizing for a cold preset neither waits for its weights nor has them built."""
    api.request("PATCH", PATH, json={"sources": {"ft": {"weight": 0.9}}})
    world.forge.gate.clear()
    response = api.post("/tokenize", {"model": "tutor@1", "prompt": "hi"})
    assert response.status_code == 200, response.text
    assert api.get(f"{PATH}?revision=1").json()["state"] == "cold"


def test_explain(api: Harness) -> None:
    """Explain says why it is a variant, what it takes, and what the parameters resolve to."""
    explained = api.get(f"{PATH}/explain").json()
    assert (explained["path"], explained["state"]) == ("variant", "ready")
    assert "weights are written" in explained["reason"]
    assert explained["num_bytes"] > 0
    assert explained["variant"]["seconds"] > 0
    assert set(explained["variant"]["seconds_by_phase"]) >= {"allocate", "finish"}
    (source,) = explained["sources"]
    assert source["groups"][0]["values"] == {"weight": 0.5, "density": 0.5}
    assert explained["twin"]["exact"] is False


def test_too_large(world: VariantWorld) -> None:
    """A variant beyond the budget is 422 with the numbers, and nothing is disturbed."""
    engine = ScriptedEngine(CONFIG)
    catalog = world.open_with_sources(budget=100)
    with running(make_app(engine, catalog), engine) as api:
        response = api.post("/v1/presets", {"name": "tutor", **TIES})
        assert response.status_code == 422
        assert "--variant-memory" in error(response)["message"]
        assert api.get("/v1/presets").json()["data"] == []


UP, INF = "model.layers.0.mlp.up_proj.weight", float("inf")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({UP: None, "model.norm.weight": None}, (UP, "model.norm.weight")),
        ({UP: torch.zeros(3, 4), "model.norm.weight": torch.zeros(5)}, (UP, "model.norm.weight")),
        ({"foo": torch.zeros(4), "bar": torch.zeros(4)}, ("foo", "bar")),
        ({UP: torch.zeros(4, 4, dtype=torch.int32)}, (UP,)),
        ({UP: torch.full((4, 4), float("nan"))}, (UP,)),
        (
            {"model.norm.weight": torch.full((4,), INF), UP: torch.full((4, 4), -INF)},
            (UP, "model.norm.weight"),
        ),
        ({"model.embed_tokens.weight": torch.zeros(9, 4)}, ("model.embed_tokens.weight",)),
    ],
)
def test_bad_content_disturbs_nothing(
    api: Harness, world: VariantWorld, changes: dict, named: tuple[str, ...]
) -> None:
    """Content that does not suit is 422 with every tensor that is wrong, no internals are told, and
    the revision that serves is what it was.
    """
    before = api.get(PATH).json()
    world.checkpoint("bad", 9, **{name.replace(".", "__"): t for name, t in changes.items()})
    response = api.request("PUT", "/v1/sources/ft", json={"path": "bad"})
    assert response.status_code == 422
    assert all(name in error(response)["message"] for name in named)
    assert "Traceback" not in response.text
    assert api.get(PATH).json() == before
    assert before["state"] == "ready"
    assert api.complete(model="tutor").json()["mergeserve"]["revision"] == 1


# mergekit


def test_yaml_is_put(api: Harness, world: VariantWorld) -> None:
    """A mergekit configuration as it is becomes the one native document."""
    response = put_yaml(api, config(world))
    assert response.status_code == 200, response.text
    document = response.json()
    assert document["method"] == "ties"
    assert document["sources"] == {"ft": {"weight": 0.25, "density": 0.5}}
    assert (document["revision"], document["state"]) == (2, "ready")


def test_yaml_is_posted_with_a_name(api: Harness, world: VariantWorld) -> None:
    """YAML has no name, so POST takes it from the query."""
    response = put_yaml(api, config(world), "/v1/presets?name=new", "POST")
    assert response.status_code == 201, response.text
    assert response.json()["name"] == "new"
    nameless = put_yaml(api, config(world), "/v1/presets", "POST")
    assert (nameless.status_code, error(nameless)["param"]) == (400, "name")
    taken = put_yaml(api, config(world), "/v1/presets?name=tutor", "POST")
    assert taken.status_code == 409


def test_what_does_nothing_is_told(
    api: Harness, world: VariantWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """What mergekit does not read is no error: the preset says it, explain warns of it, after edits
    and a restart too, and the log has it. A configuration without it takes it back.
    """
    put_yaml(api, {**config(world), "name": "x", "parameters": {"wieght": 1}})
    said = [
        "name: mergekit does not read it; it does nothing",
        "parameters.wieght: ties does not read it; it does nothing; did you mean 'weight'?",
    ]
    assert [r.getMessage() for r in caplog.records if "does nothing" in r.getMessage()] == [
        f"preset tutor: {line}" for line in said
    ]
    assert api.get(PATH).json()["ignored"] == said
    assert api.request("PATCH", PATH, json={"seed": 5}).json()["revision"] == 3
    assert told(api.get(f"{PATH}/explain?interference=false").json()) == said
    assert "name" not in api.get(f"{PATH}?format=mergekit").json()
    assert told(world.open().explain("tutor")) == said


def told(explained: dict[str, Any]) -> list[str]:
    """The warnings, but for the one that the random source is no fine-tune of the base."""
    return [w for w in explained["warnings"] if not w.startswith("sources.ft: it is no fine-tune")]


def test_nothing_that_does_nothing_is_told(api: Harness, world: VariantWorld) -> None:
    """A configuration without such keys gives a preset without them, also in place of another."""
    put_yaml(api, {**config(world), "name": "x"})
    assert "ignored" not in put_yaml(api, config(world)).json()
    assert told(api.get(f"{PATH}/explain").json()) == []


def test_mergekit_in_json(api: Harness, world: VariantWorld) -> None:
    """The same in JSON, beside the fields that mergekit does not know."""
    body = {"name": "new", "description": "x", "pinned": True, "mergekit": config(world)}
    document = api.post("/v1/presets", body).json()
    assert (document["description"], document["pinned"]) == ("x", True)
    assert document["sources"] == {"ft": {"weight": 0.25, "density": 0.5}}
    both = api.post("/v1/presets", {**body, "name": "other", "method": "ties"})
    assert (both.status_code, error(both)["param"]) == (400, "method")
    for wrong in ("ties", [], None):
        refused = api.post("/v1/presets", {"name": "other", "mergekit": wrong})
        assert (refused.status_code, error(refused)["param"]) == (400, "mergekit")


def test_there_and_back(api: Harness, world: VariantWorld) -> None:
    """What was given comes back, in JSON and in YAML, and means the same revision when sent."""
    put_yaml(api, config(world))
    url = f"{PATH}?format=mergekit"
    as_json = api.get(url)
    assert as_json.headers["ETag"] == '"2"'
    assert as_json.json()["merge_method"] == "ties"
    assert as_json.json()["models"] == config(world)["models"]
    as_yaml = api.get(url, headers={"Accept": "application/yaml"})
    assert as_yaml.headers["Content-Type"].startswith("application/yaml")
    assert yaml.safe_load(as_yaml.text) == as_json.json()
    assert put_yaml(api, as_yaml.text).json()["revision"] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "invalid YAML"),
        ("merge_method: &a [*a]", "more than"),
        ("merge_method: 2024-01-01", "date"),
        ("1: 2", "not a string"),
        ("- 5", "got list"),
        ("", "got NoneType"),
        ("\xff", "merge_method"),
        ("!!python/object/apply:os.system [ls]", "invalid YAML"),
        ("merge_method: ties\nmodels: [{model: nope}]\nbase_model: base", "nope"),
        ("merge_method: tiez\nmodels: [{model: ft}]\nbase_model: base", "tiez"),
        ("merge_method: ties\nmodels: [{model: ft}]\nbase_model: base", "ft.weight: is missing"),
        ("merge_method: ties\n---\nmerge_method: ties", "`mergeserve merge` first"),
        ("base_model: base\nexperts: [{source_model: ft}]", "mergekit-moe"),
        ("a: &a [1,1]\nb: &b [*a,*a]\n" + "c: .nan", "mergekit"),
    ],
)
def test_bad_yaml(api: Harness, text: str, reason: str) -> None:
    """YAML that is no configuration is refused with what is wrong, and nothing is edited."""
    response = put_yaml(api, text)
    assert response.status_code in (400, 422), response.text
    assert reason in error(response)["message"]
    assert api.get(PATH).json()["revision"] == 1


def test_yaml_that_grows(api: Harness) -> None:
    """Aliases that would make billions of values of a short text are refused at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    response = put_yaml(api, "\n".join(lines))
    assert (response.status_code, error(response)["code"]) == (400, "invalid_yaml")


def test_content_types(api: Harness, world: VariantWorld) -> None:
    """What is neither JSON nor YAML is 415, and says what is taken; PATCH takes no YAML."""
    body = yaml.safe_dump(config(world)).encode()
    plain = api.request("PUT", PATH, content=body, headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    assert "application/yaml" in error(plain)["message"]
    assert api.request("PATCH", PATH, content=body, headers=YAML).status_code == 415


def test_methods(api: Harness) -> None:
    """Every method is told with its parameters, their defaults and bounds, and its paper."""
    methods = {method["name"]: method for method in api.get("/v1/methods").json()["data"]}
    assert {"linear", "slerp", "ties", "dare_ties", "passthrough"} <= methods.keys()
    for method in methods.values():
        assert {"title", "paper", "description", "parameters"} <= method.keys()
    density = next(p for p in methods["ties"]["parameters"] if p["name"] == "density")
    assert (density["minimum"], density["maximum"]) == (0, 1)


def test_interference(api: Harness) -> None:
    """explain tells how the sources agree, tensor group by tensor group, unless told not to."""
    assert "interference" not in api.get(f"{PATH}/explain?interference=false").json()
    report = api.get(f"{PATH}/explain").json()["interference"]
    assert report == api.get(f"{PATH}/explain?interference=true").json()["interference"]
    assert report["total"]["relative_change"] > 0
    assert [source["name"] for source in report["groups"][0]["sources"]] == ["ft"]


def test_many_edits_wait_and_reading_does_not(api: Harness, world: VariantWorld) -> None:
    """More edits than there are threads wait for builds, and reading goes on."""
    world.forge.gate.clear()
    with ThreadPoolExecutor(50) as threads:
        bodies = [{"sources": {"ft": {"weight": 0.01 * index}}} for index in range(50)]
        edits = [threads.submit(api.request, "PATCH", PATH, json=body) for body in bodies]
        world.forge.wait_for_start()
        assert api.get("/v1/presets").status_code == 200
        assert api.get(f"{PATH}/explain").status_code == 200
        assert api.complete(model="tutor").status_code == 200
        world.forge.gate.set()
        assert {edit.result().status_code for edit in edits} == {200}
    assert api.get(PATH).json()["revision"] == 51
