"""Text grows token by token without ever taking a character back."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.detokenizer import Detokenizer
from server.engine.tokenizer import Tokenizer
from tests.models import VOCAB_SIZE
from tests.tokenizers import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({2}))

TEXT = "naïve café, 世界 👩‍🚀!"


def pushed(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    """The text of each token, and what is left at the end."""
    return [*(detokenizer.push(token)[0] for token in token_ids), detokenizer.flush()]


@given(st.text(max_size=30), st.text(max_size=10))
def test_pieces_add_up_to_the_text(text: str, prompt: str) -> None:
    """Whatever the text, its pieces add up to it, and none ends inside a character."""
    ids = TOKENIZER.encode(text)
    pieces = pushed(Detokenizer(TOKENIZER.decode_visible, TOKENIZER.encode(prompt), ()), ids)
    assert TOKENIZER.decode(ids) == "".join(pieces)
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)


def test_multibyte_characters_come_whole() -> None:
    """A character of four byte tokens comes with its last byte."""
    ids = TOKENIZER.encode("a👍b")
    pieces = pushed(Detokenizer(TOKENIZER.decode_visible, (), ()), ids)
    assert pieces == ["a", "", "", "", "👍", "b", ""]


def test_an_unfinished_character_is_flushed_as_replacement() -> None:
    """If the text ends inside a character, the end says so with U+FFFD instead of losing it."""
    ids = TOKENIZER.encode("a👍")[:-1]
    assert "".join(pushed(Detokenizer(TOKENIZER.decode_visible, (), ()), ids)) == "a�"


def test_special_tokens_give_no_text() -> None:
    """Special tokens inside a text are not shown, and hide nothing around them."""
    ids = [*TOKENIZER.encode("ab"), 1, 2, *TOKENIZER.encode("cd")]
    assert "".join(pushed(Detokenizer(TOKENIZER.decode_visible, (), ()), ids)) == "abcd"


def test_stop_string_across_tokens() -> None:
    """A stop string that comes byte by byte is found, and no part of it is sent before."""
    detokenizer = Detokenizer(TOKENIZER.decode_visible, (), ("café",))
    sent = ""
    for token in TOKENIZER.encode("my cafe, my café, my"):
        text, stop = detokenizer.push(token)
        sent += text
        if stop:
            break
    assert (sent, stop) == ("my cafe, my ", "café")


@given(
    st.text(alphabet="ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
)
def test_stop_strings_cut_at_the_first_match(text: str, stops: list[str]) -> None:
    """Streaming cuts exactly where searching each growing text does: at the first token that
    completes a stop string.
    """
    detokenizer = Detokenizer(TOKENIZER.decode_visible, (), tuple(stops))
    sent, met = "", None
    for token in TOKENIZER.encode(text):
        piece, met = detokenizer.push(token)
        sent += piece
        if met:
            break
    else:
        sent += detokenizer.flush()
    assert expected_cut(text, stops) == sent


def expected_cut(text: str, stops: list[str]) -> str:
    """`text` before the first stop string that it completes."""
    for end in range(1, len(text) + 1):
        starts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


def test_stop_strings_wait_for_min_tokens() -> None:
    """While a group may not stop yet, a stop string is ordinary text."""
    detokenizer = Detokenizer(TOKENIZER.decode_visible, (), ("b",))
    sent = "".join(detokenizer.push(token, may_stop=False)[0] for token in TOKENIZER.encode("abc"))
    assert sent == "abc"


def test_leading_space_is_kept_after_a_prompt() -> None:
    """The prompt's last tokens are context, so a word's leading space is text of its own."""
    detokenizer = Detokenizer(TOKENIZER.decode_visible, TOKENIZER.encode("hello"), ())
    assert "".join(pushed(detokenizer, TOKENIZER.encode(" world"))) == " world"
