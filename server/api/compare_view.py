"""How a comparison is shown: chunks while it runs, and the result."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import BaseModel
from pydantic_core import to_json

from server.api.chat import CHUNK_KIND
from server.api.completions import KIND
from server.api.responses import ChatChunkChoice, CompletionChoice, Delta
from server.compare.candidate import Candidate
from server.compare.events import Piece, Progress
from server.compare.findings import Findings
from server.compare.markdown import to_markdown
from server.compare.page import to_html
from server.compare.report import Report
from server.compare.terminal import to_text

RESULT_KIND = "comparison"


class PieceInfo(BaseModel):
    """Whose answer to which prompt a chunk goes on with."""

    prompt: int
    candidate: str
    error: str | None = None


class ProgressInfo(BaseModel):
    """How much of a phase is done."""

    phase: Literal["answers", "readings"]
    done: int
    total: int


class CompareChunk(BaseModel):
    """A piece of an answer, in the shape of a stream with `n`: the index is the candidate's."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice | ChatChunkChoice]
    mergeserve: PieceInfo


class ProgressChunk(BaseModel):
    """News without text."""

    id: str
    object: Literal["comparison.progress"]
    created: int
    choices: list[CompletionChoice]
    progress: ProgressInfo


class CompareUsage(BaseModel):
    """Tokens of all candidates: prompts and answers, and the texts that were read afterwards,
    once each; `member_forwards` are tokens times rows of the answers.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    read_tokens: int
    member_forwards: int


@dataclass(slots=True)
class CompareView:
    """Shows one comparison, of prompts or (`is_chat`) of conversations."""

    candidates: Sequence[Candidate]
    model: str
    is_chat: bool
    id: str = field(default_factory=lambda: f"cmp-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _started: set[tuple[int, int]] = field(default_factory=set)

    def chunk(self, event: Piece | Progress) -> BaseModel:
        """One event of a stream."""
        if isinstance(event, Progress):
            progress = ProgressInfo(phase=event.phase, done=event.done, total=event.total)
            return ProgressChunk(
                id=self.id,
                object="comparison.progress",
                created=self.created,
                choices=[],
                progress=progress,
            )
        candidate = self.candidates[event.candidate]
        info = PieceInfo(prompt=event.case, candidate=candidate.name)
        if event.error is not None:
            info.error = event.error
        return CompareChunk(
            id=self.id,
            object=CHUNK_KIND if self.is_chat else KIND,
            created=self.created,
            model=candidate.served.model,
            choices=[self._choice(event)],
            mergeserve=info,
        )

    def result(self, report: Report, findings: Findings, *, html: bool, streamed: bool) -> bytes:
        """The result as JSON, ASCII only; numbers that are not finite become null."""
        shown = {name.name: getattr(report, name.name) for name in fields(report)}
        whole: dict[str, object] = {
            "id": self.id,
            "object": RESULT_KIND,
            "created": self.created,
            "model": self.model,
            **({"choices": []} if streamed else {}),
            **shown,
            "usage": _usage(findings),
            "text": to_text(report),
            "markdown": to_markdown(report),
            **({"html": to_html(report)} if html else {}),
        }
        return to_json(whole, inf_nan_mode="null", ensure_ascii=True)

    def _choice(self, piece: Piece) -> CompletionChoice | ChatChunkChoice:
        index, reason = piece.candidate, piece.finish_reason
        if not self.is_chat:
            return CompletionChoice(
                index=index, text=piece.text, logprobs=None, finish_reason=reason
            )
        delta = Delta(content=piece.text)
        if (piece.case, index) not in self._started:
            self._started.add((piece.case, index))
            delta.role = "assistant"
        return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=reason)


def _usage(findings: Findings) -> CompareUsage:
    answers = [
        (case, answer)
        for case, row in zip(findings.cases, findings.answers, strict=True)
        for answer in row
        if answer.error is None
    ]
    prompt_tokens = sum(len(case.token_ids) for case, _ in answers)
    completion_tokens = sum(len(answer.token_ids) for _, answer in answers)
    return CompareUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        read_tokens=sum(len(text) for readings in findings.readings for text in readings),
        member_forwards=sum(len(answer.token_ids) * answer.num_rows for _, answer in answers),
    )
