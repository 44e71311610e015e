"""Answers of `/v1/completions`."""

from collections.abc import Sequence

from server.api.generation import ChoiceOutput, ChoiceResult
from server.api.logprobs import completion_logprobs
from server.api.prompts import EncodedPrompt
from server.api.responses import Answer, CompletionChoice, CompletionLogprobs, Envelope
from server.api.token_places import TokenPlaces
from server.engine.request import FinishReason, TokenLogprobs
from server.engine.tokenizer import Tokenizer
from server.presets.served import Served

KIND = "text_completion"


class CompletionView:
    """Shows what the engine generates as texts, which begin with their prompt with `echo`."""

    def __init__(
        self,
        served: Served,
        tokenizer: Tokenizer,
        prompts: Sequence[EncodedPrompt],
        num_choices: int,
        *,
        echo: bool,
        logprobs: bool,
        members: Sequence[str] = (),
    ) -> None:
        """`members`: the names of those whose own log-probabilities are shown too."""
        self.envelope = Envelope.new(served, "cmpl")
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._members = members
        self._echoes = [_echo(prompt, tokenizer) if echo else "" for prompt in prompts]
        self._num_choices = num_choices
        self._started = [False] * (len(prompts) * num_choices)
        self._places = [
            TokenPlaces(tokenizer, prompt.token_ids, text)
            for prompt, text in zip(prompts, self._echoes, strict=True)
            for _ in range(num_choices if logprobs else 0)
        ]

    def whole(self, results: Sequence[ChoiceResult]) -> Answer:
        """The answer that is not streamed."""
        choices = [
            self._choice(index, result.text, result.prompt, result.tokens, result.finish_reason)
            for index, result in enumerate(results)
        ]
        return self.envelope.wrap(KIND, choices)

    def chunks(self, news: ChoiceOutput) -> list[Answer]:
        """The chunks that tell of one output."""
        output = news.output
        prompt = output.prompt or ()
        choice = self._choice(news.index, output.text, prompt, output.tokens, output.finish_reason)
        return [self.envelope.wrap(KIND, [choice])]

    def empty_chunk(self) -> Answer:
        """A chunk without choices."""
        return self.envelope.wrap(KIND, [])

    def _choice(
        self,
        index: int,
        text: str,
        prompt: Sequence[TokenLogprobs],
        tokens: Sequence[TokenLogprobs],
        finish_reason: FinishReason | None,
    ) -> CompletionChoice:
        if not self._started[index]:
            self._started[index] = True
            text = self._echoes[index // self._num_choices] + text
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs_of(index, prompt, tokens),
            finish_reason=finish_reason,
        )

    def _logprobs_of(
        self, index: int, prompt: Sequence[TokenLogprobs], tokens: Sequence[TokenLogprobs]
    ) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        at = self._places[index]
        places = [at.echoed(token.token_id) for token in prompt]
        places += [at.generated(token.token_id) for token in tokens]
        return completion_logprobs([*prompt, *tokens], self._tokenizer, places, self._members)


def _echo(prompt: EncodedPrompt, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(prompt.token_ids) if prompt.text is None else prompt.text
