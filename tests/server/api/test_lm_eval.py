"""lm-eval's `local-completions` reads log-probabilities: its rules, done again on our answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from server.app import create_app
from server.settings import Settings
from tests.server.api.scripted import Harness, running
from tests.tokenizer_kinds import KINDS


def lm_eval_score(answer: dict[str, Any], context_len: int) -> tuple[float, bool]:
    """What lm-eval makes of a choice (`parse_logprobs`, lm_eval/models/openai_completions.py)."""
    logprobs = answer["logprobs"]
    total = sum(logprobs["token_logprobs"][context_len:-1])
    tokens = logprobs["tokens"][context_len:-1]
    tops = logprobs["top_logprobs"][context_len:-1]
    is_greedy = True
    for token, top in zip(tokens, tops, strict=True):
        if max(top.items(), key=lambda item: item[1])[0] != token:
            is_greedy = False
            break
    return total, is_greedy


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "unigram"])
def server(request, tmp_path_factory) -> Iterator[tuple[Harness, Any, LlamaForCausalLM]]:
    """A tiny model that likes pieces of characters, with a tokenizer of one kind."""
    folder: Path = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = KINDS[request.param]()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    settings = Settings(
        model=str(folder),
        dtype="float32",
        device="cpu",
        database_url=f"sqlite:///{folder.parent / 'presets.db'}",
        kv_memory=0.01,
    )  # type: ignore[call-arg]
    with running(create_app(settings), None) as harness:  # type: ignore[arg-type]
        yield harness, tokenizer, model


def test_sum_and_greedy_are_those_of_the_model(server) -> None:
    """For every token after a context, lm-eval finds its log-probability, and takes it for the
    greedy one exactly where it is: also of `▁true` and `true`, and of pieces of characters.
    """
    harness, tokenizer, model = server
    context = tokenizer.encode("the water is", add_special_tokens=False)
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([context])).logits[0, -1].float(), -1)
    ranked = expected.argsort(descending=True).tolist()
    candidates = [*ranked[:20], *tokenizer.encode("true 東 🚀", add_special_tokens=False)]
    body = {"model": "base", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    prompts = [[*context, token_id] for token_id in candidates]
    choices = harness.post("/v1/completions", {**body, "prompt": prompts}).json()["choices"]
    for token_id, choice in zip(candidates, choices, strict=True):
        total, is_greedy = lm_eval_score(choice, len(context))
        assert total == pytest.approx(expected[token_id].item(), abs=1e-4)
        assert is_greedy == (token_id == ranked[0])


def test_loglikelihood_says_the_same(server) -> None:
    """`/v1/loglikelihood` finds the same sums and the same greedy texts."""
    harness, tokenizer, _ = server
    context, texts = "the water", [" is wet", " is true", " is 東"]
    given = {"model": "base", "prompts": [context] * 3, "completions": texts}
    data = harness.post("/v1/loglikelihood", given).json()["data"]
    num_context = len(tokenizer.encode(context))
    prompts = [tokenizer.encode(context + text) for text in texts]
    body = {"model": "base", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    choices = harness.post("/v1/completions", {**body, "prompt": prompts}).json()["choices"]
    for score, choice in zip(data, choices, strict=True):
        total, is_greedy = lm_eval_score(choice, num_context)
        assert score["sum"] == pytest.approx(total, abs=1e-4)
        assert score["is_greedy"] == is_greedy
        assert score["tokens"] == choice["logprobs"]["tokens"][num_context:-1]
