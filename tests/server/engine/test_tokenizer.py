"""The tokenizer's wrapper: bytes of pieces, templates, and errors of our own."""

import pytest

from server.engine.tokenizer import TemplateError, Tokenizer
from tests.models import VOCAB_SIZE
from tests.tokenizers import byte_tokenizer


def make(chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of single bytes."""
    return Tokenizer(
        byte_tokenizer(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset({2}),
        chat_template=chat_template,
    )


def test_bytes_of_pieces_add_up_to_the_text() -> None:
    """A token that is a piece of a character gives its own bytes, not those of U+FFFD."""
    tokenizer = make()
    ids = tokenizer.encode("né 👍�")
    assert "né 👍�".encode() == b"".join(map(tokenizer.token_bytes, ids))


def test_special_tokens_are_text_unless_hidden() -> None:
    """Special tokens are shown where a token is shown alone, and hidden in the visible text."""
    tokenizer = make()
    assert tokenizer.token_text(2) == "<eos>"
    assert tokenizer.decode_visible([2]) == ""


def test_a_template_of_the_operator_replaces_the_model_s() -> None:
    """`--chat-template` wins over the model's own template."""
    tokenizer = make("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "[hi]"


def test_a_template_s_complaint_is_a_template_error() -> None:
    """What a template raises reaches the caller as `TemplateError` with its own words."""
    tokenizer = make("{{ raise_exception('system is not a role here') }}")
    with pytest.raises(TemplateError, match="system is not a role here"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}])
