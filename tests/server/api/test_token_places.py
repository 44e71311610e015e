"""Tokens of an answer, and where they stand in its text, whatever the kind of tokenizer."""

from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from server.api.logprobs import completion_logprobs
from server.api.responses import CompletionLogprobs
from server.api.token_places import TokenPlaces
from server.engine.detokenizer import Detokenizer
from server.engine.request import TokenLogprobs
from server.engine.tokenizer import Tokenizer
from tests.tokenizer_kinds import KINDS, byte_level, sentencepiece

TEXT = "the water is wet"
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def wrapped(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer(tokenizer, vocab_size=len(tokenizer), eos_token_ids=frozenset({2}))


def shown(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    echo: str,
    generated: Sequence[int] = (),
    top: tuple[tuple[int, float], ...] = (),
) -> CompletionLogprobs:
    """The lists of an answer that echoes a prompt, if `echo` is its text."""
    at = TokenPlaces(tokenizer, prompt, echo)
    tokens = prompt if echo else ()
    places = [*map(at.echoed, tokens), *map(at.generated, generated)]
    logprobs = [TokenLogprobs(token_id, -2.0, top) for token_id in (*tokens, *generated)]
    return completion_logprobs(logprobs, tokenizer, places)


def in_place(logprobs: CompletionLogprobs, text: str) -> bool:
    """Whether every token that is text stands where its offset says."""
    pairs = zip(logprobs.tokens, logprobs.text_offset, strict=True)
    return all(text[at:].startswith(token.rstrip()) for token, at in pairs if token.isascii())


@kinds
@pytest.mark.parametrize("adds_bos", [False, True])
def test_tokens_of_an_echoed_text_join_to_it(make, adds_bos: bool) -> None:
    """Tokens are the text that was sent, each where it stands; what the tokenizer puts in front of
    a text is at its beginning.
    """
    tokenizer = wrapped(make(adds_bos=adds_bos))
    ids = tokenizer.encode(TEXT)
    logprobs = shown(tokenizer, ids, TEXT)
    front = ["<s>"] if adds_bos else []
    assert logprobs.tokens[: len(front)] == front
    tokens, offsets = logprobs.tokens[len(front) :], logprobs.text_offset[len(front) :]
    assert "".join(tokens).rstrip() == TEXT
    assert logprobs.text_offset[0] == 0
    assert all(TEXT[at:].startswith(t.rstrip()) for t, at in zip(tokens, offsets, strict=True))


@kinds
def test_tokens_of_echoed_ids_join_to_their_text(make) -> None:
    """Of a prompt of token ids special tokens are shown, and counted."""
    tokenizer = wrapped(make())
    ids = [1, *tokenizer.encode(TEXT)]
    text = tokenizer.decode(ids)
    logprobs = shown(tokenizer, ids, text)
    assert "".join(logprobs.tokens).strip() == text
    assert in_place(logprobs, text)


@kinds
def test_generated_tokens_stand_in_the_text(make) -> None:
    """Offsets are those of the text that is sent, which has neither special tokens nor the space
    that a decoder strips from its first word.
    """
    tokenizer = wrapped(make())
    ids = [1, *tokenizer.encode("the water"), 1, *tokenizer.encode("is wet")]
    detokenizer = Detokenizer(tokenizer.decode_visible, [1], ())
    text = "".join(detokenizer.push(token_id)[0] for token_id in ids) + detokenizer.flush()
    logprobs = shown(tokenizer, [1], "", ids)
    pairs = zip(ids, logprobs.tokens, logprobs.text_offset, strict=True)
    visible = [(token.strip(), at) for i, token, at in pairs if not tokenizer.is_special(i)]
    assert all(text[at:].lstrip().startswith(token) for token, at in visible), (text, visible)
    assert [at for _, at in visible] == sorted(at for _, at in visible)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_offsets_inside_a_character(make) -> None:
    """The pieces of a character all have its offset, and what follows has the next one."""
    tokenizer = wrapped(make())
    text = "is 東, wet"
    logprobs = shown(tokenizer, tokenizer.encode(text), text)
    at = [o for t, o in zip(logprobs.tokens, logprobs.text_offset, strict=True) if "bytes:" in t]
    assert at in ([3, 3, 3], [2, 3, 3])  # a token may begin with the space before it
    assert logprobs.text_offset[logprobs.tokens.index(",")] == 4


def test_what_is_generated_finishes_a_character_of_the_prompt() -> None:
    """Where a prompt ends inside a character, what is generated begins after its text."""
    tokenizer = wrapped(byte_level())
    ids = tokenizer.encode("東, wet")
    text = tokenizer.decode(ids[:2])
    logprobs = shown(tokenizer, ids[:2], text, ids[2:])
    assert text == "�"
    assert logprobs.text_offset[-2:] == [2, 3]


def test_alternatives_at_the_beginning_of_a_text_keep_their_own_names() -> None:
    """Where the first word's space is not in the text, the token is shown without it, and no
    alternative takes its name.
    """
    tokenizer = wrapped(sentencepiece(adds_bos=True))
    with_space, without = tokenizer.ids_of(["▁true", "true"]).values()
    top = ((without, -0.1), (with_space, -2.0))
    logprobs = shown(tokenizer, tokenizer.encode("true"), "true", top=top)
    assert logprobs.tokens == ["<s>", "true"]
    assert logprobs.top_logprobs[1] == {f"token_id:{without}": -0.1, "true": -2.0}


def test_a_text_that_the_tokenizer_changes() -> None:
    """Where tokens are not the text, offsets count their own characters from its beginning."""
    tokenizer = wrapped(sentencepiece(adds_bos=True))
    ids = [1, *tokenizer.encode("the water", add_special_tokens=False)]
    logprobs = shown(tokenizer, ids, "The  Water")
    assert (logprobs.tokens, logprobs.text_offset) == (["<s>", "the", " water"], [0, 0, 3])
