"""`/v1/chat/completions`: messages, templates, log-probabilities."""

import pytest

from server.engine.tokenizer import TemplateError
from tests.server.api.conftest import StartApp
from tests.server.api.scripted import CONFIG, Harness, ids, says


def test_answer_has_openais_shape(api: Harness) -> None:
    """A chat completion has OpenAI's fields, one message of the assistant, and its provenance."""
    response = api.chat("hi", model="tutor")
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ok", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["completion_tokens"] == 3
    assert body["mergeserve"]["preset"] == "tutor"
    assert response.headers["X-Mergeserve-Preset"] == "tutor@1"


def test_messages_go_through_the_template(api: Harness) -> None:
    """The prompt is what the chat template makes of the messages, whatever their roles are."""
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "pirate",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]
    api.post("/v1/chat/completions", {"model": "base", "messages": messages})
    prompt = api.engine.requests[0].members[0].prompt
    assert prompt == (
        *(1, *ids("system: be brief\n")),
        *(1, *ids("pirate: a\nb\n")),
        *(1, *ids("assistant: ")),
    )


def test_limit_defaults_to_what_fits(api: Harness) -> None:
    """Without a limit an answer may fill the context."""
    api.chat("hi")
    request = api.engine.requests[0]
    assert request.sampling.max_tokens == CONFIG.max_model_len - len(request.members[0].prompt)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"max_tokens": 5, "max_completion_tokens": 5},
    ],
)
def test_both_names_of_the_limit(api: Harness, limits: dict[str, int]) -> None:
    """max_completion_tokens and its older name mean the same."""
    api.chat("hi", **limits)
    assert api.engine.requests[0].sampling.max_tokens == 5


def test_logprobs_are_entries(api: Harness) -> None:
    """Each token is an entry with its bytes and exactly as many alternatives as were asked for."""
    body = api.chat("hi", logprobs=True, top_logprobs=2, max_tokens=1).json()
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "o",
                "logprob": -0.5,
                "bytes": [111],
                "top_logprobs": [
                    {"token": "o", "logprob": -0.5, "bytes": [111]},
                    {"token": "p", "logprob": -1.5, "bytes": [112]},
                ],
            }
        ],
        "refusal": None,
    }


def test_logprobs_without_alternatives(api: Harness) -> None:
    """logprobs alone asks for no alternatives."""
    body = api.chat("hi", logprobs=True, max_tokens=1).json()
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_no_alternatives_of_no_logprobs(api: Harness) -> None:
    """`top_logprobs: 0` asks for nothing, so it needs no logprobs; as in vLLM."""
    response = api.chat("hi", top_logprobs=0, max_tokens=1)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["logprobs"] is None


def test_choices(api: Harness) -> None:
    """n asks for as many answers."""
    body = api.chat("hi", n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [request.choice for request in api.engine.requests] == [0, 1]


def test_base_without_a_template(start: StartApp) -> None:
    """Chat with a base that has no chat template says how to give it one; completions work."""
    api = start(chat_template=None)
    error = api.chat("hi").json()["error"]
    assert "--chat-template" in error["message"]
    assert error["code"] == "no_chat_template"
    assert api.complete().status_code == 200


def test_template_that_refuses(api: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the template raises is the caller's error, with the template's own words."""
    service = api.app.state.lifecycle.service

    def refuse(*args: object, **options: object) -> list[int]:
        raise TemplateError("roles must alternate")

    monkeypatch.setattr(service.tokenizer, "apply_chat_template", refuse)
    response = api.chat("hi")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
    assert "roles must alternate" in response.json()["error"]["message"]


def test_template_that_makes_nothing(start: StartApp) -> None:
    """A template that makes an empty prompt is an error, not an empty request."""
    api = start(chat_template="{# nothing #}")
    assert api.chat("hi").json()["error"]["code"] == "empty_prompt"


def test_long_messages_leave_the_event_loop(start: StartApp) -> None:
    """A long conversation is encoded like a short one."""
    api = start()
    error = api.chat("a" * 9000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert str(CONFIG.max_model_len) in error["message"]


def test_empty_answer(api: Harness) -> None:
    """An answer that ends at once has an empty content, not null."""
    api.engine.script = says("")
    assert api.chat("hi").json()["choices"][0]["message"]["content"] == ""
