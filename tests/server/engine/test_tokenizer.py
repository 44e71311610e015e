"""The tokenizer's wrapper: bytes of pieces, templates, and errors of our own."""

import pytest

from server.engine.conversation import Conversation, TemplateOptions
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


def test_pieces_are_named_as_openai_does() -> None:
    """A piece of a character is `bytes:\\xc3` in completions and `\\xc3` in chat."""
    tokenizer = make()
    piece = tokenizer.encode("é")[0]
    assert (tokenizer.token_name(piece), tokenizer.token_text(piece)) == ("bytes:\\xc3", "\\xc3")


def test_special_tokens_are_text_unless_hidden() -> None:
    """Special tokens are shown where a token is shown alone, and hidden in the visible text."""
    tokenizer = make()
    assert tokenizer.token_text(2) == tokenizer.token_name(2) == "<eos>"
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


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ nobody.name }}", "{{ [].pop() }}", "{{ messages[9].role }}"]
)
def test_whatever_a_template_does_wrong_is_a_template_error(template: str) -> None:
    """A template is a program: any way in which it fails is about these messages."""
    with pytest.raises(TemplateError) as caught:
        make(template).apply_chat_template([{"role": "user", "content": "x"}])
    assert str(caught.value)


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a: "}]


def test_variables_of_the_template() -> None:
    """A conversation may set what its template asks for."""
    tokenizer = make("{{ messages[0].content }}{{ '!' if loud }}")
    options = TemplateOptions(variables={"loud": True})
    assert tokenizer.decode(tokenizer.apply_chat_template(MESSAGES, options)) == "hi!"


def test_the_last_message_goes_on() -> None:
    """With `continue_final_message` the prompt ends in the last message, open."""
    options = TemplateOptions(add_generation_prompt=False, continue_final_message=True)
    text = make().decode(make().apply_chat_template(MESSAGES, options))
    assert text.endswith("assistant: a: ")
    assert not text.endswith("\n")


def test_another_way_of_talking() -> None:
    """A source's template and special tokens take the place of the base's; without a template of
    its own it has the base's.
    """
    own = Conversation("{{ eos_token }}{{ messages[0].content }}", {"eos_token": "END"})
    tokenizer = make("{{ eos_token }}")
    ids = tokenizer.apply_chat_template(MESSAGES, TemplateOptions(conversation=own))
    assert tokenizer.decode(ids) == "ENDhi"
    none = Conversation(None, {"eos_token": "END"})
    ids = tokenizer.apply_chat_template(MESSAGES, TemplateOptions(conversation=none))
    assert tokenizer.decode(ids) == "END"


def test_a_template_that_cannot_be_used_is_none() -> None:
    """A template that does not parse is none, and the tokenizer knows why."""
    tokenizer = make("{% for m in messages %}")
    assert not tokenizer.has_chat_template()
    assert "does not parse: line 1" in (tokenizer.template_problem or "")
    assert tokenizer.has_chat_template(Conversation("{{ messages }}"))
