"""Bad input: an error in OpenAI's shape that blames the right field, and nothing disturbed."""

import json
from collections.abc import Iterator

import pytest

from server.api.body import MAX_BODY_BYTES
from tests.server.api.scripted import VOCAB_SIZE, Harness, ScriptedEngine, make_app, running
from tests.server.presets.tiny import World, preset

NAN = float("nan")
INFINITY = float("inf")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """One server that has to survive everything in this file."""
    world = World(tmp_path_factory.mktemp("world"))
    engine = ScriptedEngine()
    catalog = world.open_with_sources()
    catalog.seed_presets([preset()], "the test")
    with running(make_app(engine, catalog), engine) as harness:
        yield harness
    world.close()


COMPLETIONS: list[tuple[dict[str, object], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "hi"}}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [5, "a"]}, "prompt"),
    ({"prompt": [[5], "a"]}, "prompt"),
    ({"prompt": [[5], [None]]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [VOCAB_SIZE]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": [5] * 200}, "prompt"),
    ({"prompt": "a" * 200}, "prompt"),
    ({"prompt": ["a"] * 17}, "prompt"),
    ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
    ({"model": "nobody"}, "model"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": "tutor@99"}, "revision"),
    ({"model": "tutor:average"}, "model"),
    ({"model": "../etc/passwd"}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 5.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1000}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": NAN}, "temperature"),
    ({"temperature": INFINITY}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": NAN}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": "2"}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": -1}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"echo": 1}, "echo"),
    ({"ignore_eos": "no"}, "ignore_eos"),
    ({"user": 5}, "user"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"temprature": 1}, "temprature"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"guided_json": {}}, "guided_json"),
    ({"priority": 1}, "priority"),
    ({"length_penalty": 0.5}, "length_penalty"),
    ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
    ({"mergeserve": {"weight": {}}}, "mergeserve.weight"),
    ({"mergeserve": {"mode": "average"}}, "mergeserve.mode"),
    ({"mergeserve": {"weights": {"math": NAN}}}, "mergeserve.weights.math"),
    ({"mergeserve": {"weights": {"math": "0.5"}}}, "mergeserve.weights.math"),
    ({"model": "tutor", "mergeserve": {"weights": {"nobody": 1.0}}}, "mergeserve.weights"),
    ({"mergeserve": {"weights": {"math": 1.0}}}, "mergeserve.weights"),
    ({"mergeserve": "merge"}, "mergeserve"),
]

MESSAGE = {"role": "user", "content": "hi"}

CHAT: list[tuple[dict[str, object], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
        "messages[0].content",
    ),
    ({"messages": [{**MESSAGE, "weight": 1}]}, "messages[0].weight"),
    ({"messages": [{**MESSAGE, "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{**MESSAGE, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{**MESSAGE, "content": "a" * 200}]}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 1000}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"n": 17}, "n"),
    ({"prompt": "hi"}, "prompt"),
    ({"echo": True}, "echo"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy"}}, "audio"),
    ({"store": True}, "store"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"verbosity": "low"}, "verbosity"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"metadata": "a"}, "metadata"),
    ({"prompt_cache_key": 5}, "prompt_cache_key"),
    ({"prompt_cache_retention": "for ever"}, "prompt_cache_retention"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"documents": [{"text": "a"}]}, "documents"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
]

OTHERS: list[tuple[str, object, str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [MESSAGE]}, "prompt"),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ("/tokenize", {"messages": [MESSAGE], "add_special_tokens": True}, "add_special_tokens"),
    ("/tokenize", {"prompt": ["a"]}, "prompt"),
    ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"b": 1}}, "chat_template_kwargs"),
    ("/v1/presets", {"name": "x", "conversation": "nobody"}, "conversation"),
    (
        "/v1/presets",
        {"name": "x", "defaults": {"chat_template_kwargs": {"messages": 1}}},
        "defaults.chat_template_kwargs",
    ),
    ("/tokenize", {"prompt": "a", "model": "nobody"}, "model"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [10**30]}, "tokens"),
    ("/detokenize", {}, "tokens"),
    ("/v1/presets", {"name": "x", "sources": {"nobody": {"weight": 1}}}, "sources"),
    ("/v1/presets", {"name": "x/y"}, "name"),
    ("/v1/presets", {"name": "x", "methods": "ties"}, "methods"),
    ("/v1/presets/tutor/rollback", {}, "revision"),
    ("/v1/presets/tutor/rollback", {"revision": 0}, "revision"),
    ("/v1/presets/tutor/rollback", {"revision": "1"}, "revision"),
    ("/v1/sources", {"name": "x"}, "path"),
    ("/v1/sources", {"name": "x", "path": ""}, "path"),
    ("/v1/sources", {"name": "x", "path": "../.."}, "path"),
    ("/v1/sources", {"name": "x", "path": "/etc"}, "path"),
    ("/v1/sources", {"name": "x/y", "path": "math"}, "name"),
]


def check_error(api: Harness, response, param: str | None) -> dict[str, object]:
    """The error's shape and param; and the server goes on as if nothing had happened."""
    assert 400 <= response.status_code < 500, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param or (
        param is not None and str(error["param"]).startswith(f"{param}.")
    ), error
    assert error["message"]
    assert error["code"]
    assert "Traceback" not in response.text
    assert api.complete().json()["choices"][0]["text"] == "ok"
    assert not api.engine.cancelled
    return error


def post_raw(api: Harness, body: bytes, url: str = "/v1/completions", **headers: str):
    """POST bytes as JSON."""
    all_headers = {"Content-Type": "application/json", **headers}
    return api.request("POST", url, content=body, headers=all_headers)


@pytest.mark.parametrize(("fields", "param"), COMPLETIONS)
def test_completion_field(api: Harness, fields: dict[str, object], param: str) -> None:
    """A wrong, unknown or unsupported field of a completion is refused by name."""
    body = {"model": "base", "prompt": "hi", **fields}
    check_error(api, post_raw(api, json.dumps(body).encode()), param)


@pytest.mark.parametrize(
    ("fields", "param"), [case for case in COMPLETIONS if "stream_options" not in case[0]]
)
def test_field_of_a_streamed_completion(
    api: Harness, fields: dict[str, object], param: str
) -> None:
    """A stream that is refused is an ordinary error response."""
    body = {"model": "base", "prompt": "hi", "stream": True, **fields}
    check_error(api, post_raw(api, json.dumps(body).encode()), param)


@pytest.mark.parametrize(("fields", "param"), CHAT)
def test_chat_field(api: Harness, fields: dict[str, object], param: str) -> None:
    """A wrong, unknown or unsupported field of a chat completion is refused by name."""
    body = {"model": "base", "messages": [MESSAGE], **fields}
    check_error(api, post_raw(api, json.dumps(body).encode(), "/v1/chat/completions"), param)


@pytest.mark.parametrize(("url", "body", "param"), OTHERS)
def test_field_of_other_routes(api: Harness, url: str, body: object, param: str) -> None:
    """The other routes refuse a wrong field by name as well."""
    check_error(api, post_raw(api, json.dumps(body).encode(), url), param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"{'model': 'base'}",
        b'{"model": "base", "prompt": "\xff\xfe"}',
        b'{"model": "base", "prompt": "\\ud800"}',
        b"\xef\xbb\xbf{}x",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "base", "prompt": "hi", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "base", "prompt": [' + b"9" * 10_000 + b"]}",
        b'{"model": "base", "prompt": "hi"} {}',
        b"\x00",
    ],
)
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/presets"])
def test_broken_json(api: Harness, body: bytes, url: str) -> None:
    """A body that is not one JSON value in UTF-8 is 400, however it is broken."""
    assert post_raw(api, body, url).status_code == 400
    check_error(api, post_raw(api, body, url), None)


@pytest.mark.parametrize("body", [b"[]", b'"hi"', b"5", b"null", b"true"])
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions", "/v1/presets"])
def test_body_is_no_object(api: Harness, body: bytes, url: str) -> None:
    """JSON that is not an object is 400."""
    check_error(api, post_raw(api, body, url), None)


def test_duplicate_fields(api: Harness) -> None:
    """Of a field that is given twice the last one counts, as in most JSON parsers."""
    response = post_raw(api, b'{"model": "nobody", "model": "base", "prompt": "hi"}')
    assert response.status_code == 200


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/presets/tutor"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(api: Harness, url: str, number: str) -> None:
    """NaN and infinity are refused wherever they stand, also as a number that overflows."""
    if url == "/v1/completions":
        body = f'{{"model": "base", "prompt": "hi", "temperature": {number}}}'
        response = post_raw(api, body.encode(), url)
    else:
        body = f'{{"sources": {{"math": {{"weight": {number}}}}}}}'
        headers = {"Content-Type": "application/json"}
        response = api.request("PATCH", url, content=body, headers=headers)
    assert response.status_code == 400
    assert api.get("/v1/presets/tutor").json()["revision"] == 1


def test_body_too_large(api: Harness) -> None:
    """A body over the limit is 413, by its declared length and while it is read."""
    body = b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}'
    declared = post_raw(api, body)

    async def parts():
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    headers = {"Content-Type": "application/json"}
    chunked = api.request("POST", "/v1/completions", content=parts(), headers=headers)
    for response in (declared, chunked):
        assert response.status_code == 413
        assert check_error(api, response, None)["code"] == "body_too_large"


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
@pytest.mark.parametrize(
    ("method", "url"),
    [("POST", "/v1/completions"), ("POST", "/v1/presets"), ("PATCH", "/v1/presets/tutor")],
)
def test_content_type(api: Harness, method: str, url: str, content_type: str) -> None:
    """A body that does not say that it is JSON is 415 with the type to send."""
    headers = {"Content-Type": content_type} if content_type else {}
    response = api.request(method, url, content=b"{}", headers=headers)
    assert response.status_code == 415
    assert "application/json" in check_error(api, response, None)["message"]


@pytest.mark.parametrize("url", ["/v1/nothing", "/docs", "/v1"])
def test_unknown_path(api: Harness, url: str) -> None:
    """A path that there is not is 404 in the error's shape."""
    for method in ("GET", "POST"):
        response = api.request(method, url)
        assert response.status_code == 404
        assert check_error(api, response, None)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/presets/tutor", "GET, HEAD, PUT, PATCH, DELETE"),
        ("DELETE", "/v1/presets", "GET, HEAD, POST"),
        ("FOO", "/v1/models", "GET, HEAD"),
    ],
)
def test_wrong_method(api: Harness, method: str, url: str, allowed: str) -> None:
    """A method that a path does not have is 405 and names those that it has."""
    response = api.request(method, url)
    assert response.status_code == 405
    assert response.headers["Allow"] == allowed
    check_error(api, response, None)


@pytest.mark.parametrize(
    ("method", "url", "param"),
    [
        ("GET", "/v1/presets/tutor?revision=x", "revision"),
        ("GET", "/v1/presets/tutor?revision=0", "revision"),
        ("GET", "/v1/presets/tutor?rev=1", "rev"),
        ("GET", "/v1/presets?limit=3", "limit"),
        ("GET", "/v1/presets/tutor?format=toml", "format"),
        ("POST", "/v1/presets?dry_run=maybe", "dry_run"),
        ("PATCH", "/v1/presets/tutor?dry_run=true", "dry_run"),
        ("PATCH", f"/v1/presets/tutor?message={'m' * 1001}", "message"),
    ],
)
def test_query_parameter(api: Harness, method: str, url: str, param: str) -> None:
    """A wrong or unknown query parameter is refused by name, and nothing is edited."""
    headers = {"Content-Type": "application/json"}
    response = api.request(method, url, content=b"{}", headers=headers)
    assert response.status_code == 400
    check_error(api, response, param)
    assert api.get("/v1/presets/tutor").json()["revision"] == 1


def test_several_mistakes_are_listed_at_once(api: Harness) -> None:
    """One answer names every wrong field with its value."""
    error = api.complete(temperature=-1, top_p=7, foo=1).json()["error"]
    assert error["param"] == "temperature"
    assert all(part in error["message"] for part in ("temperature", "-1", "top_p", "7", "foo"))


def test_value_of_an_error_is_cut(api: Harness) -> None:
    """A huge value is not sent back."""
    assert len(api.complete(temperature="x" * 100_000).text) < 500


def test_template_characters_in_input(api: Harness) -> None:
    """Braces in a caller's input are shown as they are."""
    content = [{"type": "{x}{0}"}]
    error = api.post(
        "/v1/chat/completions",
        {"model": "base", "messages": [{"role": "user", "content": content}]},
    ).json()["error"]
    assert "{x}{0}" in error["message"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ({"temprature": 1}, "unknown_parameter"),
        ({"suffix": "x"}, "unsupported_parameter"),
        ({"temperature": "x"}, "invalid_type"),
        ({"temperature": 3}, "invalid_value"),
    ],
)
def test_codes(api: Harness, kind: dict[str, object], code: str) -> None:
    """The code tells unknown, unsupported and wrong apart, in OpenAI's words."""
    assert api.complete(**kind).json()["error"]["code"] == code


def test_missing_field(api: Harness) -> None:
    """A field that is needed and absent is named."""
    error = api.post("/v1/completions", {"prompt": "hi"}).json()["error"]
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
