"""POST /v1/compare: candidates, texts that are read, results, streams, cancelling."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import Sequence

import httpx
import pytest

from server.api import compare_cases
from server.api.compare import Comparison, prepare
from server.api.compare_schemas import CompareBody
from server.api.errors import RequestTimeoutError
from server.api.service import Service
from server.compare.candidate import Voice
from server.compare.case import Case
from server.compare.findings import Findings, Trouble
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
from tests.server.api.comparing import PAIR, compare, result, says_yes, two_sources
from tests.server.api.conftest import StartApp
from tests.server.api.live import listening, wait_until
from tests.server.api.reading import answers_of, compares
from tests.server.api.scripted import (
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


@pytest.fixture
def api(start: StartApp) -> Harness:
    """An application whose candidates answer yes, and the base no."""
    return says_yes(start)


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
    assert found["errors"] == ["prompts 1 and 2: math gave no answer: it broke"]
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
        words = "prompt 1: a text could not be read: too many rows"
        assert set(found["errors"]) == {words}
    else:
        assert found["errors"] == ["prompt 1: base gave no answer: too many rows"]
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
    assert "tutor is explained in part only, not without math or code: no room now" in lineup.notes


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
    assert set(found.reading_errors) == {Trouble(0, "the twin could not read a text: no such rows")}
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
