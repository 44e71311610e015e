"""POST /v1/compare: candidates, texts that are read, results, streams, cancelling, bad input."""

import asyncio
import dataclasses
import json
import re
import threading
from collections.abc import Sequence

import httpx
import pytest

from server.api import compare_cases, compare_room
from server.api.compare import Comparison, prepare
from server.api.compare_schemas import CompareBody
from server.api.errors import RequestTimeoutError
from server.api.service import Service
from server.compare.candidate import Voice
from server.compare.case import Case
from server.compare.findings import Findings
from server.engine.async_engine import Stream
from server.engine.request import Output, Request
from server.engine.tokenizer import Tokenizer
from server.errors import (
    InvalidRequestError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnprocessableError,
)
from server.presets.served import Overrides, Served
from tests.server.api.conftest import StartApp
from tests.server.api.live import listening, wait_until
from tests.server.api.reading import answers_of, compares
from tests.server.api.scripted import (
    CONFIG,
    Harness,
    ScriptedEngine,
    breaks,
    ids,
    make_app,
    piece,
    silent,
    sse_events,
)
from tests.server.presets.tiny import CLOSED_POLICY, World, preset

PAIR = {"candidates": ["tutor", "base"]}


@pytest.fixture
def api(start: StartApp) -> Harness:
    """An application whose candidates answer yes, and the base no."""
    harness = start()
    harness.engine.script = compares({"base": "no"})
    return harness


def compare(api: Harness, **fields: object) -> httpx.Response:
    """POST /v1/compare, of two prompts unless the fields say otherwise."""
    body = {"prompts": ["one", "two"], **PAIR, **fields}
    return api.post("/v1/compare", {k: v for k, v in body.items() if v is not None})


def result(api: Harness, **fields: object) -> dict:
    response = compare(api, **fields)
    assert response.status_code == 200, response.text
    answer: dict = response.json()
    return answer


def refused(api: Harness, **fields: object) -> str:
    """The message of a request that is refused before anything runs."""
    before = len(api.engine.requests)
    response = compare(api, **fields)
    assert response.status_code == 400, response.text
    assert len(api.engine.requests) == before
    error = response.json()["error"]
    message: str = error["message"]
    assert error["param"] is None or error["param"].split("[")[0] in message
    return message


def two_sources(api: Harness, **fields: object) -> None:
    """Give the preset a second source, so that it has something to leave out."""
    changes = {"sources": {"code": {"weight": 0.5}}, **fields}
    response = api.request("PATCH", "/v1/presets/tutor", json=changes)
    assert response.status_code == 200, response.text


def test_candidates_answer_and_are_compared(api: Harness) -> None:
    """Texts, first divergences, scores, divergences, costs and a verdict, against the first."""
    found = result(api, references=["yes", "yes"], scorer="exact", tags=["a", "b"])
    assert (found["object"], found["basis"], found["reference"]) == ("comparison", "score", 0)
    tutor, base = found["candidates"]
    assert (tutor["name"], tutor["preset"], tutor["revision"]) == ("tutor", "tutor", 1)
    assert (base["name"], base["role"], base["path"]) == ("base", "base", "base")
    assert tutor["versus"] is None
    assert (tutor["summary"]["score"]["estimate"], base["summary"]["score"]["estimate"]) == (1, 0)
    assert base["versus"]["same_answers"] == 0
    assert [d["text"] for d in base["versus"]["divergences"]] == ["given", "reference", "candidate"]
    assert [row["name"] for row in base["versus"]["tables"][0]["statistics"]][:2] == [
        "Mean PPL(Q)",
        "Mean PPL(base)",
    ]
    assert base["cost"]["forwards_per_token"] == 1
    assert base["cost"]["concurrency"] == 2
    answers = found["prompts"][1]["answers"]
    assert [answer["text"] for answer in answers] == ["yes", "no"]
    assert [answer["first_divergence"] for answer in answers] == [None, 0]
    assert [tag["tag"] for tag in found["tags"]] == ["a", "b"]
    assert found["verdict"]["advice"] == "undecided"
    assert found["verdict"]["sentence"].startswith("not enough prompts")
    assert found["verdict"]["sentence"] in found["markdown"].replace("\\", "")
    assert "html" not in found


def test_each_text_is_read_once_by_who_is_compared_on_it(api: Harness) -> None:
    """The given reference and the reference's answer by all, each other answer by two; equal texts
    are one, and so are rows of equal weights.
    """
    result(api, prompts=["one"], references=["no"], candidates=["tutor", "base", "math", "tutor@1"])
    readings = [request for request in api.engine.requests if request.reader is not None]
    texts = {answers_of(request): len(request.members) for request in readings}
    # `no` is given; `no<eos>` is the base's answer; `yes<eos>` that of all others. The preset of
    # one source has no source to leave out, and its revision 1 is itself.
    assert texts == {ids("no"): 3, (*ids("no"), 2): 2, (*ids("yes"), 2): 3}
    assert all(request.priority == "background" for request in api.engine.requests)
    assert all(request.sampling.max_tokens == 0 for request in readings)
    assert all(request.isolates_rows for request in readings)
    prompts = {request.members[0].prompt[: -len(answers_of(request))] for request in readings}
    assert prompts == {ids("one")}


def test_the_same_sampling_for_all(api: Harness) -> None:
    """Greedy where nothing is said, whatever a preset's defaults; seeds count up with prompts."""
    api.request("PATCH", "/v1/presets/tutor", json={"defaults": {"temperature": 1.5}})
    result(api, max_tokens=3)
    generated = [request for request in api.engine.requests if request.reader is None]
    assert {request.sampling.temperature for request in generated} == {0.0}
    assert {request.sampling.max_tokens for request in generated} == {3}
    result(api, temperature=0.5, seed=7, top_p=0.5)
    sampled = [r.sampling for r in api.engine.requests if r.sampling.temperature == 0.5]
    assert sorted(sampling.seed or 0 for sampling in sampled) == [7, 7, 8, 8]
    assert {sampling.top_p for sampling in sampled} == {0.5}


def test_conversations(api: Harness) -> None:
    """Messages instead of prompts go through the chat template."""
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    found = result(api, prompts=None, messages=[talk, talk[1:]])
    assert [prompt["prompt"] for prompt in found["prompts"]] == ["system: be brief\nuser: hi", "hi"]
    generated = [request for request in api.engine.requests if request.reader is None]
    assert len(generated[0].members[0].prompt) > len(ids("be brief hi"))


def test_the_reference_by_index_and_by_name(api: Harness) -> None:
    """Both name a candidate; candidates may have names of their own."""
    assert result(api, reference=1)["reference"] == 1
    named = [{"model": "tutor", "name": "new"}, {"model": "base", "name": "old"}]
    found = result(api, candidates=named, reference="old")
    assert [candidate["name"] for candidate in found["candidates"]] == ["new", "old"]
    assert (found["reference"], found["subject"]) == (1, 0)


def test_the_same_model_twice_gets_two_names(api: Harness) -> None:
    """With other weights it is another candidate."""
    heavier = {"model": "tutor", "mergeserve": {"weights": {"math": 2.0}}}
    found = result(api, candidates=["tutor", heavier])
    assert [candidate["name"] for candidate in found["candidates"]] == ["tutor", "tutor (2)"]
    assert len({candidate["digest"] for candidate in found["candidates"]}) == 2


def test_a_preset_is_compared_with_its_parts(api: Harness) -> None:
    """Base, sources and merge, and the previous revision, without naming any."""
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"code": {"weight": 0.5}}})
    found = result(api, candidates=None, model="tutor")
    roles = {candidate["role"]: candidate["name"] for candidate in found["candidates"]}
    assert (
        roles.items()
        >= {
            "base": "base",
            "source": "code",
            "merge": "merge",
            "previous": "tutor@1",
        }.items()
    )
    names = [candidate["name"] for candidate in found["candidates"]]
    assert names[:4] == ["base", "math", "code", "merge"]
    assert found["model"] == "tutor"
    assert found["candidates"][found["subject"]]["name"] == "merge"


PREVIOUS = [
    ({"ensemble": {"rule": "linear_pool"}}, 2),
    ({"ensemble": {"temperature_order": "before"}}, 2),
    ({"ensemble": {"plausibility_alpha": 0.5}}, 2),
    ({"ensemble": {"members": {"math": {"prompt": "be brief"}}}}, 2),
    ({"ensemble": {"members": {"math": {"weight": 2.0}}}}, 2),
    ({"sources": {"math": {"weight": 0.7}}}, 2),
    ({"mode": "merge"}, 2),
    ({"description": "better"}, 1),
    ({"defaults": {"temperature": 0.5}}, 1),
]


@pytest.mark.parametrize(("change", "previous"), PREVIOUS, ids=[str(c) for c, _ in PREVIOUS])
def test_the_previous_revision_is_the_last_that_answers_otherwise(
    api: Harness, change: dict[str, object], previous: int
) -> None:
    """Whatever of an ensemble changed: its rule, its members, what they read. Words about it, and
    sampling, which is the comparison's own, are no difference.
    """
    two_sources(api, mode="ensemble", ensemble={"rule": "log_pool"})
    response = api.request("PATCH", "/v1/presets/tutor", json=change)
    assert response.json()["revision"] == 3, response.text
    lineup = prepared(api, candidates=None, model="tutor").lineup
    found = [candidate.name for candidate in lineup.candidates if candidate.role == "previous"]
    assert found == [f"tutor@{previous}"], lineup.notes


def test_the_rule_of_an_ensemble_is_nothing_to_a_preset_that_is_merged(api: Harness) -> None:
    """Its previous revision is the last with other weights."""
    two_sources(api)
    api.request("PATCH", "/v1/presets/tutor", json={"ensemble": {"rule": "log_pool"}})
    lineup = prepared(api, candidates=None, model="tutor").lineup
    assert [c.name for c in lineup.candidates if c.role == "previous"] == ["tutor@1"]


def test_sources_are_left_out_to_find_the_one_to_blame(api: Harness) -> None:
    """Each source of the merge, by the change of the loss, on every tag and over all."""
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"code": {"weight": 0.5}}})
    found = result(
        api, candidates=["base", "tutor"], references=["a", "b"], tags=["x", "y"], scorer=None
    )
    effects = {(e["source"], e["tag"]) for e in found["blame"]["effects"]}
    assert effects == {(s, t) for s in ("math", "code") for t in (None, "x", "y")}
    assert all(e["loss_change"] is not None for e in found["blame"]["effects"])


def test_what_the_operator_does_not_allow_is_left_out_and_said(start: StartApp) -> None:
    """Default candidates that may not be called are notes; named ones are errors."""
    api = start(policy=CLOSED_POLICY)
    api.engine.script = compares({"base": "no"})
    found = result(api, candidates=None, model="tutor")
    names = [candidate["name"] for candidate in found["candidates"]]
    assert "math" not in names
    assert any(
        "math is not compared" in note and "--serve-sources" in note for note in found["notes"]
    )
    response = compare(api, candidates=["tutor", "math"])
    assert response.status_code == 403
    assert response.json()["error"]["param"] == "candidates[1]"


def test_another_reference_than_the_ensemble_is_said_first(start: StartApp) -> None:
    """Where callers may not have the ensemble, verdicts are against something else."""
    api = start(policy=CLOSED_POLICY)
    lineup = prepared(api, candidates=None, model="tutor").lineup
    assert lineup.candidates[lineup.reference].name == "base"
    assert lineup.notes[0].startswith("all are held against base, not against the ensemble")
    named = prepared(api, candidates=None, model="tutor", reference="merge").lineup
    assert not any("all are held against" in note for note in named.notes)


def test_merge_and_ensemble_answer_before_the_others(api: Harness) -> None:
    """Else the ensemble would find its rows' prompts read by base and sources, and look cheaper."""
    two_sources(api)
    found = result(api, candidates=None, model="tutor")
    assert [c["name"] for c in found["candidates"]][-3:] == ["ensemble", "route", "tutor@1"]
    answered = [r for r in api.engine.requests if r.reader is None and r.path != "scoring"]
    assert [(r.label, r.mode) for r in answered[:4]] == [
        *[("tutor", "merge")] * 2,
        *[("tutor", "ensemble")] * 2,
    ]
    assert {r.label for r in answered[4:8]} == {""}


def test_streams_pieces_by_candidate_then_the_result(api: Harness) -> None:
    """Chunks in OpenAI's shape with the candidate as index, progress, the result, [DONE]."""
    whole = result(api)
    response = compare(api, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = sse_events(response.text)
    assert done == "[DONE]"
    frames = [json.loads(event) for event in events]
    texts: dict[tuple[int, int], str] = {}
    ends = []
    for frame in frames:
        for choice in frame["choices"]:
            key = frame["mergeserve"]["prompt"], choice["index"]
            texts[key] = texts.get(key, "") + choice["text"]
            ends += [key] if choice["finish_reason"] else []
    assert texts == {(0, 0): "yes", (1, 0): "yes", (0, 1): "no", (1, 1): "no"}
    assert sorted(ends) == sorted(texts)
    progress = [frame["progress"] for frame in frames if "progress" in frame]
    assert progress[0] == {"phase": "answers", "done": 0, "total": 4}
    assert progress[-1]["phase"] == "readings"
    assert progress[-1]["done"] == progress[-1]["total"]
    last = frames[-1]
    assert (last["object"], last["choices"]) == ("comparison", [])
    for name in ("verdict", "prompts", "reference"):
        timeless = json.loads(json.dumps(last[name]))
        assert _without_times(timeless) == _without_times(whole[name])


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {
            k: _without_times(v)
            for k, v in value.items()
            if "second" not in k and k != "cost_ratio" and k != "sentence"
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def test_a_stream_of_conversations_has_deltas(api: Harness) -> None:
    """The first of each answer says who speaks."""
    talk = [{"role": "user", "content": "hi"}]
    response = compare(api, prompts=None, messages=[talk], stream=True)
    frames = [json.loads(event) for event in sse_events(response.text)[:-1]]
    deltas = [f["choices"][0] for f in frames if f["object"] == "chat.completion.chunk"]
    speakers = [d["index"] for d in deltas if "role" in d["delta"]]
    assert sorted(speakers) == [0, 1]


def test_one_prompt_is_answered_side_by_side(api: Harness) -> None:
    """All candidates at once, so that nobody's speed is its own; with more one by one."""
    found = result(api, prompts=["one"])
    assert [c["cost"]["tokens_per_second"] for c in found["candidates"]] == [None, None]
    assert all(c["cost"]["tokens_per_second"] for c in result(api)["candidates"])


def test_html_is_made_when_asked_for(api: Harness) -> None:
    """One page, in the result."""
    page = result(api, html=True)["html"]
    assert page.startswith("<!doctype html>")
    assert "http://" not in page
    assert "https://" not in page


def test_positions_may_be_left_out(api: Harness) -> None:
    """Thousands of numbers that not everybody wants."""
    assert result(api)["prompts"][0]["positions"]
    assert result(api, positions=False)["prompts"][0]["positions"] == []


def test_a_candidate_that_fails_is_named_and_the_rest_goes_on(api: Harness) -> None:
    """Its answers are errors, and it has no verdict; the others have."""
    good = api.engine.script

    def script(request: Request) -> list[Output]:
        broken = request.members[0].name == "math" and request.reader is None
        return list((breaks() if broken else good)(request))

    api.engine.script = script
    found = result(api, candidates=["tutor", "math", "base"])
    assert found["errors"] == [f"prompt {i}: math gave no answer: it broke" for i in (0, 1)]
    assert found["candidates"][1]["versus"]["verdict"] is None
    assert found["candidates"][2]["versus"]["verdict"] is not None
    assert found["prompts"][0]["answers"][1]["error"] == "it broke"


def test_a_reading_that_fails_is_told(api: Harness) -> None:
    """The answers stay, and what was to be read is missing."""
    good = api.engine.script
    api.engine.script = lambda request: (breaks() if request.reader else good)(request)
    found = result(api)
    assert any("a text could not be read: it broke" in error for error in found["errors"])
    assert found["verdict"] is None


@pytest.mark.parametrize("refuses_readings", [False, True])
def test_what_the_engine_refuses_is_told_and_the_rest_goes_on(
    api: Harness, refuses_readings: bool
) -> None:
    """An answer, or a text that is to be read, of one prompt: the other prompt has all."""
    engine, submit = api.engine, api.engine.submit

    def refusing(requests: Sequence[Request]) -> list[Stream]:
        (request,) = requests
        is_first = request.members[0].prompt[: len(ids("one"))] == ids("one")
        is_asked = refuses_readings or request.members[0].name == "base"
        if is_first and is_asked and (request.reader is not None) == refuses_readings:
            raise InvalidRequestError("too many rows")
        return submit(requests)

    engine.submit = refusing  # type: ignore[method-assign]
    found = result(api)
    if refuses_readings:
        words = "prompt 0: a text could not be read: too many rows"
        assert set(found["errors"]) == {words}
    else:
        assert found["errors"] == ["prompt 0: base gave no answer: too many rows"]
        assert found["prompts"][0]["answers"][1]["error"] == "too many rows"
    assert found["prompts"][1]["positions"]
    assert [answer["text"] for answer in found["prompts"][1]["answers"]] == ["yes", "no"]


def prepared(api: Harness, **fields: object) -> Comparison:
    """A comparison of one prompt that is ready to run."""
    given = {"prompts": ["a"], **PAIR, **fields}
    body = CompareBody.model_validate({k: v for k, v in given.items() if v is not None})
    service = api.app.state.lifecycle.service
    comparison: Comparison = api._portal.call(prepare, service, body)  # type: ignore[attr-defined]
    return comparison


def test_the_twin_is_the_merge_on_logits(api: Harness) -> None:
    """The merge's coefficients, and nothing else of how the preset's ensemble combines."""
    combined = {"rule": "log_pool", "plausibility_alpha": 0.25, "temperature_order": "before"}
    two_sources(api, ensemble=combined)
    twin = prepared(api, candidates=["base", "tutor"]).run.job.probes[0]
    assert twin.kind == "twin"
    assert twin.served.combination is not None
    assert twin.served.combination.rule == "task_arithmetic"
    assert twin.served.combination.plausibility_alpha == 0
    assert twin.served.combination.temperature_order == "after"
    assert twin.served.combination.coefficients == {"math": 0.5, "code": 0.5}


@pytest.mark.parametrize("member", [{"prompt": "other"}, {"system": "be brief"}, {"weight": 2.0}])
def test_members_of_their_own_leave_no_twin(api: Harness, member: dict[str, object]) -> None:
    """An ensemble whose members are not the merge's sources is not its twin, and a note says so."""
    two_sources(api, ensemble={"members": {"math": member}})
    lineup = prepared(api, candidates=["base", "tutor"]).lineup
    assert "twin" not in {probe.kind for probe in lineup.probes}
    assert any("tutor is explained in part only: it has no twin" in n for n in lineup.notes)


@pytest.mark.parametrize("reference", ["route", "ensemble"])
def test_what_each_prompt_resolves_is_not_explained(api: Harness, reference: str) -> None:
    """The route has no sources to leave out; what the plain ensemble loses would not be its own."""
    two_sources(api)
    run = prepared(api, candidates=None, model="tutor", reference=reference).run
    names = [candidate.name for candidate in run.job.candidates]
    explained = {names[probe.of] for probe in run.job.probes}
    assert explained == {"merge"} | ({reference} - {"route"})


def test_probes_that_cannot_be_built_now_are_notes(
    api: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for them: the comparison goes on, and says that it explains less."""
    two_sources(api)
    resolve = Service.resolve

    async def full(service: Service, model: str, overrides: Overrides | None) -> Served:
        if overrides is not None and overrides.weights:
            raise UnavailableError("no room now", code="variant_cold")
        return await resolve(service, model, overrides)

    monkeypatch.setattr(Service, "resolve", full)
    lineup = prepared(api, candidates=["base", "tutor"]).lineup
    assert [probe.kind for probe in lineup.probes] == ["twin"]
    assert "tutor is explained in part only: no room now" in lineup.notes


@pytest.mark.parametrize(
    "error",
    [
        UnprocessableError("no such rows"),
        RequestTimeoutError("no such rows"),
        UnavailableError("no such rows", code="variant_cold"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_voice_that_cannot_be_had_for_reading_is_left_out(
    api: Harness, error: ServiceError
) -> None:
    """It is told in the errors; all others read, and have their verdicts."""
    two_sources(api)

    async def run() -> Findings:
        body = CompareBody.model_validate({"prompts": ["a"], "candidates": ["base", "tutor"]})
        run = (await prepare(api.app.state.lifecycle.service, body)).run
        voices, (twin, *_) = run.background.voices, run.job.probes

        async def but_the_twin_s(served: Served, case: Case) -> Voice:
            if served is twin.served:
                raise error
            return await voices(served, case)

        run.background = dataclasses.replace(run.background, voices=but_the_twin_s)
        return await run.finish()

    found: Findings = api._portal.call(run)  # type: ignore[attr-defined]
    twin = len(found.candidates)
    assert set(found.reading_errors) == {"prompt 0: the twin could not read a text: no such rows"}
    readings = list(found.readings[0].values())
    assert readings
    assert all((0, 1) in reading.pairs for reading in readings)
    assert all(twin not in reading.log_probs for reading in readings)


@pytest.mark.parametrize("stream", [False, True])
def test_without_the_reference_there_is_no_comparison(api: Harness, stream: bool) -> None:
    """It fails as a whole, with the reason."""
    api.engine.script = breaks()
    response = compare(api, stream=stream)
    if stream:  # answers that failed are news as well, so the headers were sent
        error = json.loads(sse_events(response.text)[-2])["error"]
    else:
        assert response.status_code == 422
        error = response.json()["error"]
    assert "the reference tutor answered none of 2 prompts: it broke" in error["message"]


def test_a_server_that_shuts_down_ends_a_comparison(api: Harness) -> None:
    """503, before a header is sent also for a stream."""
    api.engine._accepting = False
    for stream in (False, True):
        response = compare(api, stream=stream)
        assert response.status_code == 503
        assert response.headers["Retry-After"]


def test_a_full_queue_is_waited_for(api: Harness) -> None:
    """Where a live request is refused, a comparison comes again later."""
    engine = api.engine
    engine.refusal = QueueFullError("full")
    attempts = []
    submit = engine.submit

    def counting(requests):
        attempts.append(1)
        if len(attempts) > 2:
            engine.refusal = None
        return submit(requests)

    engine.submit = counting  # type: ignore[method-assign]
    assert result(api)["errors"] == []
    assert len(attempts) > 3


def test_the_request_timeout_does_not_bound_what_scores_a_prompt(start: StartApp) -> None:
    """Sources that find their prompt's likelihood wait behind live requests, as all else does."""
    api = start(request_timeout=0.05)
    answer = compares({})

    def script(request: Request) -> list[Output]:
        if request.path != "scoring":
            return list(answer(request))
        late = api.engine.emit, len(api.engine.streams) - 1, *answer(request)
        asyncio.get_running_loop().call_later(0.2, *late)
        return []

    api.engine.script = script
    routed = {"model": "tutor", "mergeserve": {"weights": "auto:route"}, "name": "routed"}
    found = result(api, prompts=["one"], candidates=["base", routed])
    assert any(request.path == "scoring" for request in api.engine.requests)
    assert found["errors"] == []


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_encoded_beside_the_event_loop(
    api: Harness, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    """Thousands of short ones together take seconds, in which nobody's stream may stand still."""
    threads: set[int] = set()

    def noted(holder: object, name: str) -> None:
        before = getattr(holder, name)

        def call(*arguments: object, **options: object) -> object:
            threads.add(threading.get_ident())
            return before(*arguments, **options)

        monkeypatch.setattr(holder, name, call)

    noted(Tokenizer, "encode")
    noted(Tokenizer, "apply_chat_template")
    noted(compare_cases, "check_references")
    talk = [[{"role": "user", "content": "a"}]]
    asked = {"prompts": None, "messages": talk} if chat else {"prompts": ["a"]}
    prepared(api, **asked, references=["a"], scorer="exact")
    loop: int = api._portal.call(threading.get_ident)  # type: ignore[attr-defined]
    assert threads
    assert loop not in threads


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_everything(world: World, stream: bool) -> None:
    """What runs is cancelled, and nothing more is started."""
    engine = ScriptedEngine()
    engine.script = (lambda request: [piece("a")]) if stream else silent
    catalog = world.open_with_sources()
    catalog.seed_presets([preset()], "the test")
    app = make_app(engine, catalog)
    with listening(app, engine) as live:
        body = {"prompts": ["a"] * 20, "concurrency": 3, "stream": stream, **PAIR}
        url = f"{live.url}/v1/compare"
        if stream:
            with httpx.stream("POST", url, json=body, timeout=20) as response:
                assert next(response.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=0.3)
        wait_until(lambda: len(engine.cancelled) == 3)
        assert len(engine.requests) == 3


def test_comparing_needs_the_api_key(start: StartApp) -> None:
    """As generation does."""
    api = start(api_key=["secret"])
    assert compare(api).status_code == 401


BAD = [
    ({"prompts": []}, "prompts: is empty"),
    ({"prompts": None}, "send either prompts or messages"),
    ({"messages": [[{"role": "user", "content": "x"}]]}, "send either prompts or messages"),
    ({"prompts": None, "messages": []}, "messages: List should have at least 1 item"),
    ({"prompts": ["a", ""]}, "prompts: is empty"),
    ({"references": ["a"]}, "references: has 1 items and prompts 2: send one for each"),
    ({"tags": ["a", "b", "c"]}, "tags: has 3 items and prompts 2"),
    ({"references": ["a", ""]}, "references[1]: is empty: send null"),
    ({"scorer": "exact"}, "scorer: needs references"),
    ({"scorer": "vibes", "references": ["a", "b"]}, "there is no scorer 'vibes'; the scorers are"),
    (
        {"scorer": {"c": "exact"}, "references": ["a", "b"], "tags": ["a", "b"]},
        "scorer: names the tag 'c', which no prompt has",
    ),
    (
        {"scorer": "number", "references": ["4", "four"]},
        "references[1]: the scorer 'number' cannot apply: the reference 'four' has no number",
    ),
    ({"scorer": "json", "references": ["{", "1"]}, "references[0]: the scorer 'json' cannot"),
    ({"scorer": "regex", "references": ["a", "("]}, "references[1]: the scorer 'regex' cannot"),
    ({"candidates": []}, "candidates: List should have at least 1 item"),
    ({"candidates": None}, "candidates: name candidates, or a preset as model"),
    ({"model": "tutor"}, "model: says whose parts are compared"),
    ({"candidates": None, "model": "math"}, "model: 'math' is no preset"),
    ({"candidates": None, "model": "tutor:merge"}, "model: 'tutor:merge' names one mode"),
    ({"reference": 2}, "reference is 2, and there are 2 candidates, counted from 0: tutor, base"),
    ({"reference": "nobody"}, "reference: no candidate is called 'nobody'; there are tutor, base"),
    ({"margin": 0}, "margin: should be greater than 0"),
    ({"max_tokens": 0}, "max_tokens: should be greater than or equal to 1"),
    ({"max_tokens": 500}, "maximum context length is 128 tokens"),
    ({"references": ["x" * 130, "y"]}, "references[0] has 130 tokens and its prompt"),
    ({"prompts": ["x" * 130, "y"]}, "the prompt alone has"),
    ({"n": 2}, "n: unknown field"),
    ({"concurrency": 0}, "concurrency: should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused(api: Harness, fields: dict[str, object], message: str) -> None:
    """With the field, the value and the way out, before anything runs."""
    response = compare(api, **fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert api.engine.requests == []


def test_unknown_candidates_are_named(api: Harness) -> None:
    """404 as for generation, with the candidate's place in the list."""
    response = compare(api, candidates=["tutor", "nobody"])
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["param"] == "candidates[1]"
    assert error["message"].startswith("candidates[1]: The model 'nobody' does not exist.")


def test_more_rows_than_there_are_is_refused(start: StartApp) -> None:
    """Nine different candidates read one text in nine rows; this server has eight."""
    api = start()
    many = [{"model": "tutor", "mergeserve": {"weights": {"math": i / 8}}} for i in range(9)]
    message = refused(api, candidates=many)
    assert "9 candidates read a text in 9 rows at once, and this server has 8" in message
    assert "--max-rows" in message


BY_PERPLEXITY = {"weights": "auto:prompt_perplexity"}
BY_ROUTE = {"weights": "auto:route"}


@pytest.mark.parametrize(
    ("weights", "candidates", "num_rows"),
    [
        ({}, ["tutor", ("tutor", BY_PERPLEXITY)], 2),
        ({}, ["tutor", ("tutor", BY_ROUTE)], 2),
        ({}, ["tutor", ("tutor", BY_ROUTE), ("tutor:ensemble", BY_ROUTE)], 2),
        ({}, ["math", "code", ("tutor", BY_ROUTE)], 2),
        ({"code": 0.0}, ["tutor:ensemble", ("tutor:ensemble", BY_PERPLEXITY)], 3),
        ({"math": 1.0, "code": 0.0}, ["math", ("tutor:ensemble", BY_PERPLEXITY)], 2),
        ({}, ["tutor:ensemble", ("tutor:ensemble", BY_PERPLEXITY)], 2),
    ],
)
def test_rows_of_weights_that_the_prompt_chooses_are_counted(
    start: StartApp, weights: dict[str, float], candidates: list, num_rows: int
) -> None:
    """As many as a prompt may need at most: what stands for them elsewhere may run fewer."""
    bodies = [
        {"model": c[0], "mergeserve": c[1]} if isinstance(c, tuple) else c for c in candidates
    ]
    sources = {name: {"weight": weight} for name, weight in weights.items()}
    for max_rows in (num_rows, num_rows - 1):
        api = start(config=dataclasses.replace(CONFIG, max_rows=max_rows))
        two_sources(api)
        api.request("PATCH", "/v1/presets/tutor", json={"sources": sources})
        if max_rows == num_rows:
            api.engine.script = compares({})
            assert result(api, candidates=bodies)["errors"] == []
        else:
            assert f"read a text in {num_rows} rows at once" in refused(api, candidates=bodies)


def test_prompts_of_members_that_the_prompt_may_choose_are_measured(api: Harness) -> None:
    """A source of weight 0 is a row if the prompt gives it weight, and reads its own system prompt
    then.
    """
    api.engine.script = compares({})
    two_sources(
        api,
        sources={"math": {"weight": 1.0}, "code": {"weight": 0.0}},
        ensemble={"members": {"code": {"system": "x" * 130}}},
    )
    talk = {"prompts": None, "messages": [[{"role": "user", "content": "hi"}]]}
    plain: list[object] = ["base", "tutor:ensemble"]
    assert result(api, candidates=plain, **talk)["errors"] == []
    chosen = {"model": "tutor:ensemble", "mergeserve": BY_PERPLEXITY}
    response = compare(api, candidates=["base", chosen], **talk)
    assert response.status_code == 400, response.text
    assert "maximum context length is 128 tokens" in response.json()["error"]["message"]


def test_more_positions_than_memory_holds_are_refused(
    api: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts times tokens times candidates are bounded, less tightly where none are shown."""
    monkeypatch.setattr(compare_room, "MAX_SHOWN_POSITIONS", 40)
    monkeypatch.setattr(compare_room, "MAX_POSITIONS", 80)
    assert len(result(api, max_tokens=10)["prompts"]) == 2
    message = refused(api, max_tokens=11)
    assert "2 prompts of 11 tokens for 2 candidates are 44 positions, of 40 allowed" in message
    assert '"positions": false, with which 80 are allowed' in message
    assert len(result(api, max_tokens=20, positions=False)["prompts"]) == 2
    assert "84 positions, of 80 allowed" in refused(api, max_tokens=21, positions=False)


def test_a_text_that_does_not_fit_the_cache_is_refused(start: StartApp) -> None:
    """Rows times tokens, with the way out."""
    api = start(config=dataclasses.replace(CONFIG, num_blocks=8))
    message = refused(api, candidates=["tutor", "base", "math"], max_tokens=60)
    assert re.search(r"in 3 rows does not fit the KV cache of 128 tokens.*--kv-memory", message)


def test_probes_are_dropped_where_rows_are_few(start: StartApp) -> None:
    """They explain; the comparison goes on without them, and says so."""
    api = start(config=dataclasses.replace(CONFIG, max_rows=3))
    api.engine.script = compares({})
    api.request("PATCH", "/v1/presets/tutor", json={"sources": {"code": {"weight": 0.5}}})
    found = result(api, candidates=["base", "tutor", "math"], references=["a", "b"])
    assert found["blame"] is None
    assert any("this server has 3 (--max-rows)" in note for note in found["notes"])


def test_cancelled_while_it_waits_for_the_queue(api: Harness) -> None:
    """A comparison that waits for room can be given up."""
    api.engine.refusal = QueueFullError("full")
    service = api.app.state.lifecycle.service

    async def give_up() -> None:
        body = CompareBody.model_validate({"prompts": ["a"], **PAIR})
        comparison = await prepare(service, body)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(comparison.run.finish(), 0.1)
        assert comparison.run._working is not None
        assert comparison.run._working.done()

    api._portal.call(give_up)  # type: ignore[attr-defined]
