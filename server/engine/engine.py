"""The engine: groups in, tokens out, one step at a time. It runs on whatever thread calls it, one
at a time.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from ensemble.errors import EnsembleError
from server.engine.config import EngineConfig
from server.engine.detokenizer import Decode, Detokenizer
from server.engine.disagreement import EVERY_TOKENS, Disagreement
from server.engine.group import FAILED, Combined, Group
from server.engine.reader import token_logprobs
from server.engine.request import Output, Request, TokenLogprobs
from server.engine.runner import Runner
from server.engine.sampler import forbidden_tokens, sample
from server.engine.scheduler import Scheduler
from server.engine.stats import EngineObserver, RequestStats, StepStats
from server.engine.step_plan import RowWork, StepPlan

logger = logging.getLogger(__name__)

OBSERVER_FAILED = "the engine's observer failed"


class Engine:
    """Rows and groups over one resident model. See `step`."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        *,
        decode: Decode,
        eos_token_ids: frozenset[int],
        observer: EngineObserver | None = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.observer = observer
        self._runner = runner
        self._decode = decode
        self._eos_token_ids = eos_token_ids

    def add(self, request: Request) -> Group:
        """Queue a request. The caller has checked it against the config."""
        prompt = request.members[0].prompt
        group = Group(request, Detokenizer(self._decode, prompt, request.sampling.stop))
        self.scheduler.add(group)
        return group

    def abort(self, group: Group) -> None:
        """Take a group out; it frees its rows and blocks at once. Harmless if it has ended."""
        if group.finish_reason is None and not group.aborted:
            group.aborted = True
            self._leave(group)

    def step(self) -> list[tuple[Group, Output]]:
        """Compute one step: a token for every row that decodes, and a chunk of the prompts."""
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        groups = _groups(plan.work)
        try:
            outputs = self._compute(plan, groups)
        except Exception:
            logger.exception("a step of %d rows failed", len(plan.work))
            # Those that had ended in this step too: nobody was told.
            outputs = [self._fail(group, FAILED) for group in groups]
        try:
            self._observe(plan, time.perf_counter() - started)
        except Exception:
            logger.exception(OBSERVER_FAILED)
        return outputs

    def _compute(self, plan: StepPlan, groups: list[Group]) -> list[tuple[Group, Output]]:
        self._runner.clear(plan.new_blocks)
        logits = self._runner.forward(plan.work)
        self.scheduler.computed(plan)
        for group in groups:
            group.take({row: logits[row] for row in group.rows if row in logits})
        ready = [group for group in groups if group.is_ready and group.mistake is None]
        tokens = self._sample([group for group in ready if group.sampling.max_tokens > 0])
        max_len = self.config.max_model_len
        outputs = [(g, g.append(token, self._eos_token_ids, max_len)) for g, token in tokens]
        outputs += [(g, g.finish_without_token()) for g in ready if g.sampling.max_tokens == 0]
        for group, output in outputs:
            if output.finish_reason is not None:
                self._leave(group)
        return outputs + [self._fail(g, g.mistake) for g in groups if g.mistake is not None]

    def _sample(self, ready: list[Group]) -> list[tuple[Group, TokenLogprobs]]:
        """Combine each group's rows and draw its next token."""
        combined: dict[Group, Combined] = {}
        for group in ready:
            try:
                made = group.combine(forbidden_tokens(group, self._eos_token_ids))
            except EnsembleError as error:
                group.mistake = str(error)
                continue
            combined[group] = made
        if not combined:
            return []
        groups = list(combined)
        logits = torch.stack([made.logits for made in combined.values()])
        drawn_from = None
        if any(made.drawn_from is not made.logits for made in combined.values()):
            drawn_from = torch.stack([made.drawn_from for made in combined.values()])
        tokens = sample(logits, groups, self._eos_token_ids, drawn_from)
        return [(g, _noted(g, token, combined[g])) for g, token in zip(groups, tokens, strict=True)]

    def _fail(self, group: Group, message: str) -> tuple[Group, Output]:
        output = group.fail(message)
        self._leave(group)
        return group, output

    def _leave(self, group: Group) -> None:
        """Free what a group holds, unless it did so already, and tell the observer."""
        if not self.scheduler.has(group):
            return
        self.scheduler.finish(group)
        if self.observer is not None:
            try:
                self.observer.finished(RequestStats.of(group))
            except Exception:  # what is measured of a request must not cost it its answer
                logger.exception(OBSERVER_FAILED)

    def _observe(self, plan: StepPlan, seconds: float) -> None:
        if self.observer is not None:
            running, waiting = self.scheduler.running, self.scheduler.waiting
            self.observer.step(
                StepStats(
                    seconds=seconds,
                    num_rows=len(plan.work),
                    num_tokens=plan.num_tokens,
                    num_groups_running=sum(not group.is_background for group in running),
                    num_groups_waiting=sum(not group.is_background for group in waiting),
                    num_groups_background=sum(g.is_background for g in (*running, *waiting)),
                    kv_cache_usage=self.scheduler.blocks.usage,
                    num_preempted=len(plan.preempted),
                    prefix_queries=plan.prefix_queries,
                    prefix_hits=plan.prefix_hits,
                    active_rank=self._runner.active_rank,
                )
            )


def _noted(group: Group, token: TokenLogprobs, made: Combined) -> TokenLogprobs:
    """The token with what each row by itself says of it, if asked for; how far the rows are apart
    is noted now and then.
    """
    if len(made.rows) > 1 and len(group.output_tokens) % EVERY_TOKENS == 0:
        group.disagreements.append(Disagreement.of(made.rows, made.logits))
    num_top = group.sampling.member_logprobs
    if num_top is None:
        return token
    count = len(made.rows)
    members = token_logprobs(made.rows, [token.token_id] * count, [num_top] * count)
    return replace(token, members=tuple(members))


def _groups(work: Sequence[RowWork]) -> list[Group]:
    return list(dict.fromkeys(item.group for item in work))
