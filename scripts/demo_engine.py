"""The demo model as the server runs it, under any recipe of the demo adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merging.adapter import read_adapter
from merging.blend import Blend
from merging.plan import base_plan, plan
from merging.recipe import Recipe
from scripts.demo_data import Example, Skill
from scripts.demo_model import Score
from server.demo import demo_sources
from server.engine.group import Group
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams


@dataclass(slots=True)
class Answer:
    """What came of one request: its text, or the log-probabilities of the text that was read."""

    text: str = ""
    logprobs: Sequence[float] = ()


class DemoEngine:
    """Evaluates blends on the engine, many requests at a time."""

    def __init__(self, folder: Path) -> None:
        loaded = load_engine(folder, EngineOptions())
        self.base, self._engine, self._tokenizer = loaded.base, loaded.engine, loaded.tokenizer
        self._end = next(iter(loaded.tokenizer.eos_token_ids))
        self._adapters = {name: read_adapter(path) for name, path in demo_sources().items()}

    def blend(self, recipe: Recipe | None) -> Blend:
        """What a recipe compiles to; None is the base."""
        made = plan(recipe, self._adapters, self.base) if recipe else base_plan(self.base)
        return made.blend

    def answers(self, blend: Blend, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy answers."""
        requests = [self._answering(blend, prompt, max_tokens) for prompt in prompts]
        return [answer.text for answer in self._run(requests)]

    def scores(self, blend: Blend, skills: Mapping[str, Skill]) -> dict[str, Score]:
        """Score, loss and answer length on the held-out examples of every skill."""
        requests = [
            request
            for skill in skills.values()
            for example in skill.held_out
            for request in (
                self._answering(blend, example.prompt, skill.max_tokens),
                self._reading(blend, example),
            )
        ]
        answers = iter(self._run(requests))
        return {
            name: _score(skill, [(next(answers), next(answers)) for _ in skill.held_out])
            for name, skill in skills.items()
        }

    def _answering(self, blend: Blend, prompt: str, max_tokens: int) -> Request:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
        return Request((Member(self._encode(prompt), blend),), sampling)

    def _reading(self, blend: Blend, example: Example) -> Request:
        answer = (*self._tokenizer.encode(example.answer, add_special_tokens=False), self._end)
        member = Member(self._encode(example.prompt) + answer, blend)
        sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
        return Request((member,), sampling, num_read=len(answer))

    def _encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of one user turn up to where the assistant begins."""
        return tuple(self._tokenizer.apply_chat_template([{"role": "user", "content": prompt}]))

    def _run(self, requests: Sequence[Request]) -> list[Answer]:
        """Run requests to their ends; what came of each, in their order."""
        answers: dict[Group, Answer] = {self._engine.add(request): Answer() for request in requests}
        while self._engine.scheduler.has_work:
            for group, output in self._engine.step():
                if output.error:
                    raise RuntimeError(output.error)
                answers[group].text += output.text
                if output.prompt:  # its first token is the last one before the text
                    read = output.prompt[1:]
                    answers[group].logprobs = [t.logprob for t in read if t.logprob is not None]
        return list(answers.values())


def _score(skill: Skill, answers: Sequence[tuple[Answer, Answer]]) -> Score:
    texts = [written.text.strip() for written, _ in answers]
    scores = [
        skill.score(example.prompt, example.answer, text)
        for example, text in zip(skill.held_out, texts, strict=True)
    ]
    logprobs = [logprob for _, read in answers for logprob in read.logprobs]
    return Score(
        loss=-sum(logprobs) / len(logprobs),
        score=sum(scores) / len(scores),
        num_words=sum(len(text.split()) for text in texts) / len(texts),
    )
