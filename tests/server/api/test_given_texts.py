"""Where a given text begins, and what is wrong with it."""

import pytest

from server.api.given_texts import TextEncoder, check_lengths
from server.errors import InvalidRequestError


class Merges:
    """A tokenizer of letters that merges "ab", and a space with the letter after it."""

    def __init__(self, first: tuple[int, ...] = ()) -> None:
        self._first = first

    def encode(self, text: str) -> list[int]:
        """Token ids: a number that says how many characters, and which."""
        ids = list(self._first)
        while text:
            length = 2 if text.startswith("ab") or (text[0] == " " and len(text) > 1) else 1
            ids.append(sum(ord(char) * 1000**i for i, char in enumerate(text[:length])))
            text = text[length:]
        return ids


def encoder(*first: int, own: dict[str, str] | None = None) -> TextEncoder:
    """An encoder with that tokenizer, which puts `first` in front of every text."""
    return TextEncoder(Merges(first), own or {})  # type: ignore[arg-type]


def ids(text: str) -> tuple[int, ...]:
    """Its token ids."""
    return tuple(Merges().encode(text))


@pytest.mark.parametrize(
    ("prompt", "completion", "scored"),
    [
        ("cat", " sat", " sat"),
        ("cat ", "sat", " sat"),  # as if the space had come with the completion
        ("xa", "bc", "c"),  # "ab" became one token: it counts to the prompt, which has two alone
    ],
)
def test_completions_begin_where_lm_eval_says(prompt: str, completion: str, scored: str) -> None:
    """Both are tokenized as one text, and what is longer than the prompt alone is scored."""
    (given,) = encoder().completions([prompt], [completion])
    assert given.token_ids == ids(prompt + completion)
    assert given.scored == ids(scored)


def test_all_but_the_first_token_of_a_text_is_scored() -> None:
    """What the tokenizer puts in front counts as the first token."""
    assert encoder().texts(["cat"])[0].scored == ids("at")
    assert encoder(1).texts(["cat"])[0].scored == ids("cat")
    assert encoder(1).completions([""], ["cat"])[0].scored == ids("cat")


def test_every_mistake_is_named() -> None:
    """All texts that cannot be scored are reported by their index, not the first alone."""
    with pytest.raises(InvalidRequestError) as caught:
        encoder().texts(["", "cat", "x"])
    assert "texts[0] is empty" in caught.value.message
    assert "texts[2] has one token" in caught.value.message
    assert caught.value.param == "texts[0]"
    with pytest.raises(InvalidRequestError) as caught:
        encoder().completions(["a", "x", "", "x"], ["b", "", "y", "z"])
    for wrong in ("completions[0] adds no token", "completions[1] is empty", "prompts[2] is empty"):
        assert wrong in caught.value.message
    assert "[3]" not in caught.value.message


def test_a_member_reads_the_completion_after_its_own_prompt() -> None:
    """A prompt of a member's own stands in the place of the request's."""
    (given,) = encoder(own={"pirate": "xyz"}).completions(["cat"], [" sat"])
    assert given.own == {"pirate": ids("xyz sat")}
    with pytest.raises(InvalidRequestError, match="'pirate' reads a prompt of its own"):
        encoder(own={"pirate": "xyz"}).texts(["cat"])


def test_texts_longer_than_the_context_are_all_named() -> None:
    """A member's own prompt counts too."""
    given = encoder(own={"pirate": "x" * 40}).completions(["c", "c" * 60, "c"], ["s", "s", "s" * 9])
    with pytest.raises(InvalidRequestError) as caught:
        check_lengths(given, 45)
    assert caught.value.code == "context_length_exceeded"
    assert "completions[1] (61 tokens), completions[2] (49 tokens)" in caught.value.message
    check_lengths(given[:1], 45)
