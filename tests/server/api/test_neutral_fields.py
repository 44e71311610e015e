"""Fields that change no answer are taken at the value that changes none."""

import pytest

from tests.server.api.scripted import Harness

HINTS = {
    "user": "u",
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "request_id": "r",
    "prompt_cache_retention": "24h",
}
VLLM = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "guided_json": None,
    "structured_outputs": None,
    "use_beam_search": False,
    "best_of": 1,
    "length_penalty": 1.0,
    "priority": 0,
    "truncate_prompt_tokens": None,
    "prompt_logprobs": None,
    "return_token_ids": False,
    "bad_words": [],
    "extra_body": {},
}
CHAT = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template": None,
    "chat_template_kwargs": None,
    "documents": None,
    "echo": False,
    "include_reasoning": True,
    "add_special_tokens": False,
}
COMPLETION = {"add_special_tokens": True, "response_format": {"type": "text"}, "suffix": None}


@pytest.mark.parametrize("fields", [{k: v} for k, v in {**HINTS, **VLLM, **CHAT}.items()], ids=str)
def test_chat_takes_it(api: Harness, fields: dict[str, object]) -> None:
    """A hint, or a neutral value of OpenAI's or vLLM's, is no error and changes nothing."""
    answers = [api.chat("hi", **extra).json()["choices"] for extra in ({}, fields)]
    assert answers[0] == answers[1]
    plain, other = api.engine.requests
    assert plain.members == other.members


@pytest.mark.parametrize(
    "fields", [{k: v} for k, v in {**HINTS, **VLLM, **COMPLETION}.items()], ids=str
)
def test_completions_take_it(api: Harness, fields: dict[str, object]) -> None:
    """The same of completions."""
    answers = [api.complete(**extra).json()["choices"] for extra in ({}, fields)]
    assert answers[0] == answers[1]


def test_an_answer_that_is_sent_back(api: Harness) -> None:
    """What servers put into an answer's message may stand in a conversation."""
    answer = {"role": "assistant", "content": "hi", "id": "m1", "reasoning_content": None}
    messages = [{"role": "user", "content": "a"}, {**answer, "refusal": None, "reasoning": ""}]
    response = api.post("/v1/chat/completions", {"model": "base", "messages": messages})
    assert response.status_code == 200, response.text


def test_a_value_that_is_not_neutral_is_refused_with_those_that_are(api: Harness) -> None:
    """What would change the answer, and cannot, is refused by name with the neutral values."""
    error = api.complete(use_beam_search=True).json()["error"]
    assert (error["param"], error["code"]) == ("use_beam_search", "unsupported_parameter")
    assert "null or False" in error["message"]
    assert "send 1 or 2" in api.complete(best_of=3, n=2).json()["error"]["message"]
