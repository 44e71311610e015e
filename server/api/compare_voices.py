"""What is served, on one prompt of a comparison: its rows and its rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastapi.concurrency import run_in_threadpool

from server.api.compare_cases import Inputs
from server.api.deadline import Deadline
from server.api.groups import compile_rules, engine_members
from server.api.prompts import EncodedPrompt, PromptReader
from server.api.service import Service
from server.compare.candidate import Voice
from server.compare.case import Case
from server.presets.served import Overrides, Served, ServedMember


@dataclass(frozen=True, slots=True)
class Row:
    """What a row runs and reads: its weights' digest, which keeps none in memory, and a system
    prompt or prompt of its own. Equal ones are one row, whatever they are called.
    """

    name: str = field(compare=False)
    digest: str
    system: str | None
    prompt: str | None


@dataclass(frozen=True, slots=True)
class ByPrompt:
    """What is served where each prompt chooses the weights. `served` stands for it elsewhere; an
    ensemble runs `rows`, a route one of them, and a merge a row like no other.
    """

    served: Served
    model: str
    overrides: Overrides
    rows: frozenset[Row]


class VoiceMaker:
    """Makes voices, and remembers them: a candidate reads several texts of each prompt."""

    def __init__(
        self,
        service: Service,
        inputs: Inputs,
        temperature: float,
        by_prompt: Sequence[ByPrompt] = (),
    ) -> None:
        self._service, self._inputs, self._temperature = service, inputs, temperature
        self._by_prompt = {id(item.served): item for item in by_prompt}
        self._made: dict[tuple[int, int], tuple[Served, Voice]] = {}

    async def __call__(self, served: Served, case: Case) -> Voice:
        """The voice of `served` on `case`."""
        key = id(served), case.index  # kept beside its voice, so that its id stays its own
        if key not in self._made:
            self._made[key] = served, await self._make(served, case)
        return self._made[key][1]

    async def _make(self, served: Served, case: Case) -> Voice:
        if chosen := self._by_prompt.get(id(served)):
            prompt = EncodedPrompt(case.token_ids)
            # Without a deadline: in the background it waits for every live request.
            served = await self._service.resolve_for(
                chosen.model, chosen.overrides, prompt, Deadline(), "background"
            )
        if has_own_prompts(served.members):
            prompt = await run_in_threadpool(self._inputs.encode, case.index, served.members)
        else:
            prompt = EncodedPrompt(case.token_ids)
        rule, draw_rule = compile_rules(served, self._temperature)
        return Voice(engine_members(served, prompt), rule, draw_rule, served.weights)


def rows_of(members: Sequence[ServedMember]) -> frozenset[Row]:
    """The rows that members run."""
    return frozenset(Row(m.name, m.weights.digest, m.system, m.prompt) for m in members)


def has_own_prompts(readers: Iterable[PromptReader]) -> bool:
    """Whether one of them reads something else than the request's prompt."""
    return any(reader.system is not None or reader.prompt is not None for reader in readers)
