"""A real server over a tiny model, driven as a user would: the official client, curl's HTTP,
signals.
"""

import asyncio
import json
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch

from bench.edits import Load, under_load
from merging.adapter import read_adapter
from server.engine.model import describe
from tests.adapters import blend_of, merge_densely, peft_logits, save_adapter
from tests.models import save_tiny_model, tiny_model
from tests.tokenizers import byte_tokenizer

PROMPT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, slots=True)
class Server:
    """A server process and its folders."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def http(self) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *options: str) -> Server:
    """Start a server over the folder's model and adapters, and wait until it is ready."""
    port = free_port()
    command = [
        sys.executable, "-m", "server", "serve", str(folder / "tiny"), "--dtype", "float32",
        "--port", str(port), "--database-url", f"sqlite:///{folder}/presets.db",
        "--source-dir", str(folder / "adapters"), "--kv-memory", "0.05", "--num-threads", "1",
        "--source", f"one={folder}/adapters/one", "--source", f"two={folder}/adapters/two",
        *options,
    ]  # fmt: skip
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    server = Server(process, f"http://127.0.0.1:{port}", folder)
    for _ in range(600):
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return server
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    pytest.fail((folder / "log").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and two adapters of it of unequal rank and alpha."""
    folder = tmp_path_factory.mktemp("end-to-end")
    save_tiny_model(folder / "tiny")
    model = tiny_model()
    save_adapter(folder / "adapters" / "one", model, seed=1, r=2, lora_alpha=7)
    save_adapter(folder / "adapters" / "two", model, seed=2, r=5, lora_alpha=3, use_rslora=True)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One server for all tests that only read or make presets of their own."""
    server = start(folder)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


def echoed_logprobs(server: Server, model: str) -> list[float]:
    """Log-probabilities of the prompt's tokens after the first."""
    answer = server.client().completions.create(
        model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    return [float(value) for value in logprobs.token_logprobs[1:]]


def expected_logprobs(logits: torch.Tensor) -> list[float]:
    """The same from logits [tokens, vocab]."""
    targets = torch.tensor(byte_tokenizer().encode(PROMPT)[1:])[:, None]
    return logits.log_softmax(-1)[:-1].gather(1, targets)[:, 0].tolist()


@pytest.mark.parametrize("source", ["one", "two"])
def test_a_source_by_name_equals_peft(server: Server, source: str) -> None:
    """Over HTTP, an adapter's echoed log-probabilities equal PEFT's unmerged forward to 1e-4."""
    token_ids = byte_tokenizer().encode(PROMPT)
    logits = peft_logits(tiny_model(), server.folder / "adapters" / source, token_ids)
    assert pytest.approx(expected_logprobs(logits), abs=1e-4) == echoed_logprobs(server, source)


def test_a_preset_equals_the_dense_merge_and_an_edit_moves_it(server: Server) -> None:
    """Each revision gives the log-probabilities of its own dense merge, the old one still by its
    number.
    """
    adapters = [read_adapter(server.folder / "adapters" / name) for name in ("one", "two")]
    expected = []
    with server.http() as http:
        for weights in ((0.2, 0.9), (0.8, -0.3)):
            document = {
                "sources": {
                    name: {"weight": w} for name, w in zip(("one", "two"), weights, strict=True)
                }
            }
            assert http.put("/v1/presets/mix", json=document).status_code in (200, 201)
            model = tiny_model()
            base = describe(model, name="tiny", digest="", dtype=torch.float32)
            merge_densely(model, base, blend_of(base, dict(zip(adapters, weights, strict=True))))
            with torch.inference_mode():
                token_ids = torch.tensor([byte_tokenizer().encode(PROMPT)])
                expected.append(expected_logprobs(model(input_ids=token_ids).logits[0]))
    assert pytest.approx(expected[1], abs=1e-4) == echoed_logprobs(server, "mix")
    assert pytest.approx(expected[0], abs=1e-4) == echoed_logprobs(server, "mix@1")


def test_an_open_stream_finishes_on_the_revision_that_it_began_with(server: Server) -> None:
    """A PATCH while a stream runs changes the next answer, not the stream."""
    with server.http() as http:
        document = {"sources": {"one": {"weight": 0.2}}, "defaults": {"temperature": 0}}
        assert http.put("/v1/presets/live", json=document).status_code == 201
        body = {"model": "live", "prompt": PROMPT, "max_tokens": 150, "ignore_eos": True}
        before = http.post("/v1/completions", json=body).json()
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.headers["X-Mergeserve-Preset"] == "live@1"
            lines = response.iter_lines()
            first = next(lines)
            patch = {"sources": {"one": {"weight": 0.8}}}
            with server.http() as other:
                edited = other.patch("/v1/presets/live", json=patch)
                after = other.post("/v1/completions", json=body)
            rest = [line for line in lines if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in [first, *rest]]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert edited.headers["ETag"] == '"2"'
    assert before["choices"][0]["text"] == text
    assert {1} == {chunk["mergeserve"]["revision"] for chunk in chunks if "mergeserve" in chunk}
    assert after.headers["X-Mergeserve-Preset"] == "live@2"
    assert before["choices"][0]["text"] != after.json()["choices"][0]["text"]


def test_the_official_client_chats_and_streams(server: Server) -> None:
    """`openai` works unmodified: models, chat, streamed chat with usage, completions, errors."""
    client = server.client()
    assert [model.id for model in client.models.list() if model.id in ("tiny", "one", "two")] == [
        "tiny",
        "one",
        "two",
    ]
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(
        model="one", messages=messages, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    stream = client.chat.completions.create(
        model="one",
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens == chunks[-1].usage.completion_tokens
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=messages)


def test_requests_in_flight_together_keep_their_own_text(server: Server) -> None:
    """Many requests over many weights at once give what each gives alone."""
    variants = [
        {
            "model": "mix",
            "mergeserve": {"weights": {"one": index / 8, "two": 1 - index / 4}},
            "prompt": f"Prompt number {index}",
            "max_tokens": 30,
            "seed": index,
            "ignore_eos": True,
        }
        for index in range(16)
    ]

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/completions", json=body) for body in variants)
            )
        return [answer.json()["choices"][0]["text"] for answer in answers]

    with server.http() as http:
        document = {"sources": {"one": {"weight": 1}, "two": {"weight": 1}}}
        http.put("/v1/presets/mix", json=document)
        alone = [
            http.post("/v1/completions", json=body).json()["choices"][0]["text"]
            for body in variants
        ]
    assert alone == asyncio.run(ask_all())
    assert len(set(alone)) == 16


def test_edits_under_load(server: Server) -> None:
    """150 edits under 16 streams: no failed request, no mixed response, and each response's replay
    is the same text.
    """
    load = Load("edited", ("one", "two"), num_edits=150, max_tokens=12, phase_seconds=1.0)
    mixed, different = asyncio.run(under_load(server.url, load, num_streams=16))
    assert (load.failures, mixed, different) == ([], 0, 0)
    revisions = {revision for response in load.responses for revision in response.revisions}
    assert len(revisions) > 20


def test_metrics_tell_what_happened(server: Server) -> None:
    """The counters of the tests above are in the Prometheus text, by preset."""
    with server.http() as http:
        http.put("/v1/presets/seen", json={"sources": {"one": {"weight": 1}}})
        body = {"model": "seen", "prompt": "x", "max_tokens": 5, "ignore_eos": True}
        assert http.post("/v1/completions", json=body).status_code == 200
        text = http.get("/metrics").text
    lines = [
        line for line in text.splitlines() if "generation_tokens_total" in line and "seen" in line
    ]
    assert len(lines) == 1
    assert math.isclose(5, float(lines[0].split()[-1]))


def test_presets_survive_a_restart_and_sigterm_drains(folder: Path) -> None:
    """SIGTERM lets an open stream finish and exits with 0; the next process serves the same
    revision.
    """
    first = start(folder, "--database-url", f"sqlite:///{folder}/restart.db")
    with first.http() as http:
        http.put("/v1/presets/kept", json={"sources": {"one": {"weight": 0.5}}})
        body = {
            "model": "kept",
            "prompt": PROMPT,
            "max_tokens": 150,
            "stream": True,
            "ignore_eos": True,
        }
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            first.process.send_signal(signal.SIGTERM)
            rest = list(lines)
    assert "data: [DONE]" in rest
    assert '"finish_reason":"length"' in "".join(rest)
    assert first.process.wait(30) == 0
    second = start(folder, "--database-url", f"sqlite:///{folder}/restart.db")
    try:
        with second.http() as http:
            assert http.get("/v1/presets/kept").json()["sources"]["one"]["weight"] == 0.5
    finally:
        second.process.terminate()
        second.process.wait(30)
