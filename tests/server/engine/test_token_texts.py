"""What tokens stand for by themselves, whatever the kind of tokenizer."""

import pytest

from server.engine.token_texts import TokenTexts, escaped
from tests.tokenizer_kinds import KINDS, byte_level, gemma, sentencepiece

TEXT = "the water is wet. true"
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@kinds
def test_tokens_join_to_the_text(make) -> None:
    """The tokens of a text are that text, but for the space that stands for its beginning."""
    tokenizer = make()
    ids = tokenizer.encode(TEXT)
    texts = TokenTexts(tokenizer, len(tokenizer))
    joined = b"".join(map(texts.raw, ids)).decode()
    assert "".join(map(texts.name, ids)) == joined
    if make.__name__ != "word_ends":  # its words end with their space, before a stop as well
        assert joined.removeprefix(" ") == TEXT
    assert joined.removeprefix(" ").rstrip() == tokenizer.decode(ids)


@kinds
def test_no_two_tokens_have_one_name(make) -> None:
    """Every token of a vocabulary, and every row of the embedding without one, has its own name."""
    tokenizer = make()
    num_rows = len(tokenizer) + 5
    texts = TokenTexts(tokenizer, num_rows)
    assert len({texts.name(index) for index in range(num_rows)}) == num_rows
    assert texts.name(num_rows - 1) == f"token_id:{num_rows - 1}"
    assert texts.raw(num_rows - 1) == b""


@pytest.mark.parametrize("make", [sentencepiece, gemma, KINDS["unigram"]])
def test_a_word_after_a_space_is_told_from_one_without(make) -> None:
    """`▁true` is " true", also where the decoder strips the first space of a text."""
    tokenizer = make()
    texts = TokenTexts(tokenizer, len(tokenizer))
    pair = [texts.name(tokenizer.convert_tokens_to_ids(piece)) for piece in ("▁true", "true")]
    assert pair == [" true", "true"]


@pytest.mark.parametrize("make", [byte_level, sentencepiece, gemma])
def test_pieces_of_characters(make) -> None:
    """A token that is no text has the bytes of its own, and OpenAI's form as its name."""
    tokenizer = make()
    texts = TokenTexts(tokenizer, len(tokenizer))
    ids = tokenizer.encode("東�")
    assert b"".join(map(texts.raw, ids)).decode().strip() == "東�"
    names = [name for name in map(texts.name, ids) if name != " "]
    assert names == [f"bytes:\\x{byte:02x}" for byte in "東�".encode()]


def test_bytes_of_the_fallback_that_are_spelled_out_too() -> None:
    """`<0x61>` is the letter a, as the token "a" is: the latter has the name, since texts become
    it. A newline, which nothing else stands for, is a newline.
    """
    tokenizer = sentencepiece()
    texts = TokenTexts(tokenizer, len(tokenizer))
    names = [texts.name(tokenizer.convert_tokens_to_ids(p)) for p in ("a", "<0x61>", "<0x0A>")]
    assert names == ["a", "bytes:a", "\n"]


def test_special_tokens_are_their_own_text() -> None:
    """A special token is shown as it is written, also where its characters stand for bytes."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<é|>"]})
    texts = TokenTexts(tokenizer, len(tokenizer))
    shown = [texts.name(tokenizer.convert_tokens_to_ids(token)) for token in ("</s>", "<é|>")]
    assert shown == ["</s>", "<é|>"]


def test_bytes_are_escaped_without_doubt() -> None:
    """What can be printed stays; a backslash does not, since it begins an escape."""
    assert escaped(b" \\\xe5a\n") == " \\x5c\\xe5a\\x0a"
