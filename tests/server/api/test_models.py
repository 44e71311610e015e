"""`/v1/models`, `/tokenize` and `/detokenize`."""

import pytest

from tests.server.api.scripted import CONFIG, Harness, ids


def test_base_comes_first(api: Harness) -> None:
    """Everything that can be called is listed, the base first; presets have a revision."""
    body = api.get("/v1/models").json()
    assert body["object"] == "list"
    assert body["data"][0]["id"] == "tiny"
    cards = {card["id"]: card for card in body["data"]}
    assert cards.keys() == {"tiny", "tutor", "math", "code"}
    assert cards["tutor"]["revision"] == 1
    assert cards["tutor"]["parent"] == "tiny"
    for card in body["data"]:
        assert card["object"] == "model"
        assert isinstance(card["created"], int)
        assert card["owned_by"] == "mergeserve"


@pytest.mark.parametrize("model_id", ["tiny", "tutor", "math"])
def test_one_model(api: Harness, model_id: str) -> None:
    """A model's card can be read by its id."""
    assert api.get(f"/v1/models/{model_id}").json()["id"] == model_id


@pytest.mark.parametrize("model_id", ["nobody", "a/b", "a%2Fb", "tutor@9"])
def test_no_model(api: Harness, model_id: str) -> None:
    """An unknown model is 404 in OpenAI's words, also when its id has a slash."""
    response = api.get(f"/v1/models/{model_id}")
    assert response.status_code == 404


def test_tokenize(api: Harness) -> None:
    """/tokenize has vLLM's shape."""
    body = api.post("/tokenize", {"prompt": "hi"}).json()
    expected = list(ids("hi"))
    assert body == {
        "count": 2,
        "max_model_len": CONFIG.max_model_len,
        "tokens": expected,
        "token_strs": None,
    }
    named = api.post("/tokenize", {"model": "tutor", "prompt": "hi", "return_token_strs": True})
    assert named.json()["token_strs"] == ["h", "i"]


def test_tokenize_empty(api: Harness) -> None:
    """An empty text has no tokens."""
    assert api.post("/tokenize", {"prompt": ""}).json()["count"] == 0


def test_tokenize_messages(api: Harness) -> None:
    """/tokenize shows what a conversation becomes."""
    messages = [{"role": "user", "content": "hi"}]
    whole = api.post("/tokenize", {"messages": messages}).json()["tokens"]
    part = api.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()
    assert api.post("/detokenize", {"tokens": whole}).json() == {
        "prompt": "<bos>user: hi\n<bos>assistant: "
    }
    assert api.post("/detokenize", {"tokens": part["tokens"]}).json() == {
        "prompt": "<bos>user: hi\n"
    }


def test_detokenize_round_trip(api: Harness) -> None:
    """/detokenize undoes /tokenize."""
    text = "naïve, 模型 🙂"
    tokens = api.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert api.post("/detokenize", {"tokens": tokens}).json()["prompt"] == text
