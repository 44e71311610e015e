"""What the routes hand to the engine for an ensemble."""

import dataclasses

import pytest

from tests.server.api.conftest import StartApp
from tests.server.api.scripted import CONFIG, Harness, ids
from tests.server.presets.tiny import World, reading_threads


def test_the_engine_gets_members_by_name_and_a_rule(api: Harness) -> None:
    """One request is one group: its rows have names, the request's prompt and a rule of theirs."""
    assert api.complete(model="tutor:ensemble").status_code == 200
    (request,) = api.engine.requests
    assert [member.name for member in request.members] == ["base", "math"]
    assert {member.prompt for member in request.members} == {ids("hi")}
    assert request.rule is not None
    assert (request.label, request.mode, request.path) == ("tutor", "ensemble", "ensemble")


def test_rows_that_read_the_request_come_first(api: Harness) -> None:
    """Penalties and counts look at the first row's prompt, so it is the request's."""
    members = {"base": {"prompt": "a longer one"}}
    extension = {"mode": "ensemble", "members": members}
    answer = api.complete(model="tutor", mergeserve=extension).json()
    (request,) = api.engine.requests
    assert [member.prompt for member in request.members] == [ids("hi"), ids("a longer one")]
    assert answer["usage"]["prompt_tokens"] == len(ids("hi"))


def test_the_longest_prompt_must_fit_the_context(api: Harness) -> None:
    """A member's own prompt counts as the request's does."""
    members = {"base": {"prompt": "x" * 200}}
    response = api.complete(model="tutor", mergeserve={"mode": "ensemble", "members": members})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_conversation_without_a_limit_fits_the_kv_cache(start: StartApp) -> None:
    """What all members find room for in the KV cache, not what one row would have."""
    api = start(config=dataclasses.replace(CONFIG, num_blocks=8))
    for model, room in (("tutor", 128), ("tutor:ensemble", 64)):
        assert api.chat("hi", model=model).status_code == 200
        request = api.engine.requests[-1]
        assert request.sampling.max_tokens == room - len(request.members[0].prompt)


@pytest.mark.parametrize(("mode", "model"), [("ensemble", "mixed"), ("merge", "mixed:ensemble")])
def test_members_that_are_old_revisions_are_not_read_again(
    api: Harness, world: World, mode: str, model: str
) -> None:
    """What serves has their plans: no request for it reads the database."""
    members = {"old": {"model": "tutor@1", "weight": 0.5}}
    document = {"name": "mixed", "sources": {"code": {"weight": 0.5}}, "mode": mode}
    created = api.post("/v1/presets", {**document, "ensemble": {"members": members}})
    assert created.status_code == 201, created.text
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"math": {"weight": 0.9}}})
    threads = reading_threads(world.catalog)
    assert api.complete(model=model).status_code == 200
    assert [member.name for member in api.engine.requests[0].members] == ["code", "old"]
    assert threads == []


def test_rules_are_listed_with_the_methods(api: Harness) -> None:
    """GET /v1/methods has every rule with its parameters, beside the methods."""
    items = api.get("/v1/methods").json()["data"]
    rules = {item["name"]: item for item in items if item["kind"] == "rule"}
    assert rules.keys() == {"task_arithmetic", "log_pool", "linear_pool"}
    names = {parameter["name"] for parameter in rules["linear_pool"]["parameters"]}
    assert names == {"weight", "temperature_order"}
    assert {item["name"]: item for item in items}["task_arithmetic"]["kind"] == "linear"


@pytest.mark.parametrize(("min_tokens", "is_lenient"), [(0, False), (2, True)])
def test_a_shortest_length_goes_before_the_plausibility_constraint(
    api: Harness, min_tokens: int, is_lenient: bool
) -> None:
    """Only a request that has both brings the rule without the constraint, for where they clash."""
    rule = {"mode": "ensemble", "rule": "log_pool", "plausibility_alpha": 0.1}
    assert api.complete(model="tutor", min_tokens=min_tokens, mergeserve=rule).status_code == 200
    request = api.engine.requests[-1]
    assert request.rule.plausibility_alpha == 0.1
    expected = dataclasses.replace(request.rule, plausibility_alpha=0.0) if is_lenient else None
    assert request.lenient_rule == expected
