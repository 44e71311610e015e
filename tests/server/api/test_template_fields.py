"""How a request wants its conversation written: in chat, in `/tokenize`, and by a preset."""

from typing import Any

import pytest

from server.engine.tokenizer import Tokenizer
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import Harness, ids, tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if style is defined %}<{{ style }}>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]


@pytest.fixture
def api(start: StartApp) -> Harness:
    return start(chat_template=TEMPLATE)


def prompts(api: Harness, **fields: Any) -> tuple[str, str]:
    """The prompt of a chat, and what `/tokenize` makes of the same."""
    body = {"model": "base", "messages": MESSAGES, **fields}
    response = api.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    tokens = api.post("/tokenize", body).json()["tokens"]
    text: Tokenizer = tokenizer()
    return text.decode(api.engine.requests[-1].members[0].prompt), text.decode(tokens)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "hiwell, >"),
        ({"add_generation_prompt": True}, "hiwell, >"),
        ({"add_generation_prompt": False}, "hiwell, "),
        ({"continue_final_message": True}, "hiwell, "),
        ({"continue_final_message": True, "add_generation_prompt": False}, "hiwell, "),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "hiwell, !>"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "hiwell, >"),
        ({"chat_template_kwargs": {"nobody_asks": [1, {"a": None}]}}, "hiwell, >"),
    ],
)
def test_prompt(api: Harness, fields: dict[str, object], expected: str) -> None:
    """Chat and `/tokenize` write the same prompt, as vLLM would."""
    assert prompts(api, **fields) == (expected, expected)


def test_a_preset_has_defaults(api: Harness) -> None:
    """A preset's variables count where the request does not set them, one by one."""
    defaults = {"defaults": {"chat_template_kwargs": {"enable_thinking": False, "style": "a"}}}
    api.request("PATCH", "/v1/presets/tutor", json=defaults)
    assert prompts(api, model="tutor") == ("hiwell, <a>!>",) * 2
    own = {"enable_thinking": True}
    assert prompts(api, model="tutor", chat_template_kwargs=own) == ("hiwell, <a>>",) * 2
    assert prompts(api, model="tutor@1") == ("hiwell, >",) * 2
    shown = api.get("/v1/presets/tutor").json()["defaults"]
    assert shown == defaults["defaults"]


def test_members_read_the_conversation_the_same_way(api: Harness) -> None:
    """A member with a system prompt of its own reads it under the same variables."""
    members = {"negative": {"model": "base", "system": "no", "weight": -0.5}}
    extension = {"mode": "ensemble", "members": members}
    body = {"model": "tutor", "messages": MESSAGES, "mergeserve": extension}
    variables = {"enable_thinking": False}
    api.post("/v1/chat/completions", {**body, "chat_template_kwargs": variables})
    read = {tokenizer().decode(m.prompt) for m in api.engine.requests[-1].members}
    assert read == {"hiwell, !>", "nohiwell, !>"}


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"messages": []}, "'messages' is not a variable of the template's own"),
        ({"chat_template": "x"}, "'chat_template'"),
        ({"eos_token": "x"}, "'eos_token'"),
        ({"continue_final_message": True}, "'continue_final_message'"),
        ({"a-b": 1}, "'a-b' is no name of a variable"),
        ({f"a{i}": i for i in range(65)}, "65 variables"),
        ({"a": "x" * 300_000}, "longer than 262144 characters"),
        ({"a": 10**12}, "1000000000000"),
    ],
)
def test_variables_are_bounded(api: Harness, variables: dict[str, object], what: str) -> None:
    """What is the request's or the model's own, or makes a template work for long, is refused."""
    body = {"model": "base", "messages": MESSAGES, "chat_template_kwargs": variables}
    response = api.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"
    assert what in response.json()["error"]["message"]


def test_deep_variables_are_refused(api: Harness) -> None:
    """Nesting has a bound, so that nothing recurses without end."""
    deep: object = 1
    for _ in range(40):
        deep = [deep]
    body = {"model": "base", "messages": MESSAGES, "chat_template_kwargs": {"a": deep}}
    error = api.post("/v1/chat/completions", body).json()["error"]
    assert "nested deeper than 16" in error["message"]


def test_a_template_that_divides_by_zero(start: StartApp) -> None:
    """A mistake of a template is 400 with its words, never 500."""
    response = start(chat_template="{{ 1 // 0 }}").chat("hi")
    assert response.status_code == 400
    assert "ZeroDivisionError" in response.json()["error"]["message"]


def test_a_template_that_does_not_parse(start: StartApp) -> None:
    """Chat says why there is no template, and the way out; completions work."""
    api = start(chat_template="{% for %}")
    error = api.chat("hi").json()["error"]
    assert error["code"] == "no_chat_template"
    assert "does not parse" in error["message"]
    assert "--chat-template" in error["message"]
    assert api.complete().status_code == 200


def test_ids_are_those_of_the_template(api: Harness) -> None:
    """Nothing is put in front of what the template writes."""
    prompts(api)
    assert api.engine.requests[-1].members[0].prompt == ids("hiwell, >")
