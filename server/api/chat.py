"""Answers of `/v1/chat/completions`."""

from collections.abc import Sequence

from server.api.generation import ChoiceOutput, ChoiceResult
from server.api.logprobs import chat_logprobs
from server.api.responses import (
    Answer,
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    Envelope,
)
from server.engine.request import TokenLogprobs
from server.engine.tokenizer import Tokenizer
from server.presets.served import Served

KIND = "chat.completion"
CHUNK_KIND = "chat.completion.chunk"


class ChatView:
    """Shows what the engine generates as messages of the assistant."""

    def __init__(
        self, served: Served, tokenizer: Tokenizer, *, logprobs: bool, members: Sequence[str] = ()
    ) -> None:
        """`members`: the names of those whose own log-probabilities are shown too."""
        self.envelope = Envelope.new(served, "chatcmpl")
        self._members = members
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._started: set[int] = set()

    def whole(self, results: Sequence[ChoiceResult]) -> Answer:
        """The answer that is not streamed."""
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(role="assistant", content=result.text, refusal=None),
                logprobs=self._logprobs_of(result.tokens),
                finish_reason=result.finish_reason,
            )
            for index, result in enumerate(results)
        ]
        return self.envelope.wrap(KIND, choices)

    def chunks(self, news: ChoiceOutput) -> list[Answer]:
        """The chunks that tell of one output; the first one of a choice says who speaks."""
        index, output = news.index, news.output
        choices = []
        if index not in self._started:
            self._started.add(index)
            choices.append(_chunk_choice(index, Delta(role="assistant", content="")))
        has_text = output.text or output.finish_reason is None
        choice = _chunk_choice(index, Delta(content=output.text) if has_text else Delta())
        choice.logprobs = self._logprobs_of(output.tokens)
        choice.finish_reason = output.finish_reason
        return [self.envelope.wrap(CHUNK_KIND, [part]) for part in (*choices, choice)]

    def empty_chunk(self) -> Answer:
        """A chunk without choices."""
        return self.envelope.wrap(CHUNK_KIND, [])

    def _logprobs_of(self, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._tokenizer, self._members) if self._logprobs else None


def _chunk_choice(index: int, delta: Delta) -> ChatChunkChoice:
    return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)
