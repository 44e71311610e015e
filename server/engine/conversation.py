"""How a model's conversations are written, and which tokens end its answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat template, the special tokens that it names, and the tokens that end an answer.

    `template` None: the base's.
    """

    template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How one conversation is written: whose way (None: the base's), variables of the template, and
    whether it goes on with an answer of its own, or with the last message.
    """

    conversation: Conversation | None = None
    variables: Mapping[str, object] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


AS_THE_BASE: Final = TemplateOptions()


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None) -> dict[str, str]:
    """The tokenizer's special tokens that a template names, such as `eos_token`."""
    named = tokenizer.special_tokens_map.items()
    return {k: v for k, v in named if isinstance(v, str) and k in (template or "")}


def pick_template(
    tokenizer: PreTrainedTokenizerBase, templates: str | Mapping[str, str] | None
) -> tuple[str | None, str | None]:
    """The chat template of a tokenizer, the one called "default" of several; or None, and why none
    can be used.
    """
    if templates is None:
        return None, None
    if isinstance(templates, str):
        template, name = templates, ""
    elif DEFAULT in templates:
        template, name = templates[DEFAULT], f" {DEFAULT!r}"
    else:
        return None, f"there are several ({', '.join(sorted(templates))}), and no {DEFAULT!r}"
    mistake = syntax_mistake(tokenizer, template)
    return (template, None) if mistake is None else (None, f"the template{name} {mistake}")


def syntax_mistake(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """Why a template cannot be parsed; None if it can, whatever it refuses then."""
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], chat_template=template, tokenize=False
        )
    except TemplateSyntaxError as error:
        return f"does not parse: line {error.lineno}: {error.message}"
    except Exception:  # it parses, and takes other conversations than this one
        return None
    return None
