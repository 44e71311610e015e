"""What a source's folder says of its conversations: its own chat template and stop tokens."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.engine.conversation import Conversation, pick_template, special_tokens
from server.engine.stop_tokens import stop_tokens_in_files
from server.engine.tokenizer import Tokenizer

TOKENIZER_FILES: Final = ("tokenizer_config.json", "tokenizer.json")


def read_conversation(folder: Path, base: Tokenizer) -> tuple[Conversation | None, tuple[str, ...]]:
    """How a source wants to be talked to, where that differs from the base's way, and warnings.

    Its text is tokenized by the base's tokenizer: stop tokens are found there by their text. A
    folder without a config.json, of an adapter, adds its stop tokens to the base's. Nothing is
    raised: what cannot be read is as in the base, and a warning says so.
    """
    try:
        return _read(folder, base)
    except Exception as error:  # whatever a stranger's tokenizer files may bring about
        why = f"{folder} has tokenizer files that cannot be used"
        return None, (f"{why}, so that it is talked to as the base is: {error}",)


def _read(folder: Path, base: Tokenizer) -> tuple[Conversation | None, tuple[str, ...]]:
    stop_ids, own = stop_tokens_in_files(folder), base.conversation
    tokenizer, template, problem = None, None, None
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        template, problem = pick_template(tokenizer, tokenizer.chat_template)
        if tokenizer.eos_token_id is not None:
            stop_ids |= {tokenizer.eos_token_id}
    ends, unknown = _in_base(stop_ids, tokenizer, base)
    if not ends or not (folder / "config.json").is_file():
        ends |= own.eos_token_ids
    template = template or own.template
    names = own.special_tokens if tokenizer is None else special_tokens(tokenizer, template)
    conversation = Conversation(template, names, ends)
    is_same_text = conversation.template == own.template and names == own.special_tokens
    if is_same_text and ends == own.eos_token_ids and not unknown and problem is None:
        return None, ()
    return conversation, tuple(_warnings(conversation, base, unknown, problem))


def _in_base(
    ids: Iterable[int], tokenizer: PreTrainedTokenizerBase | None, base: Tokenizer
) -> tuple[frozenset[int], list[str]]:
    """Stop tokens of a source as ids of the base, and those that the base does not have."""
    if tokenizer is None:
        return frozenset(i for i in ids if 0 <= i < base.vocab_size), []
    texts = {i: tokenizer.convert_ids_to_tokens(i) for i in ids if 0 <= i < len(tokenizer)}
    tokens = {i: text for i, text in texts.items() if text is not None}
    known = base.ids_of(tokens.values())
    unknown = sorted(token for token in tokens.values() if token not in known)
    return frozenset(known.values()), unknown


def _warnings(
    own: Conversation, base: Tokenizer, unknown: list[str], problem: str | None
) -> Iterator[str]:
    differ = []
    if own.template != base.conversation.template:
        differ.append("a chat template of its own")
    elif own.special_tokens != base.conversation.special_tokens:
        differ.append("special tokens of its own, which the chat template names")
    if own.eos_token_ids != base.eos_token_ids:
        names = (_shown(i.eos_token_ids, base) for i in (own, base.conversation))
        differ.append("the stop tokens {}, where the base has {}".format(*names))
    if differ:
        yield (
            f"it has {', and '.join(differ)}: they count where it is called by its name, and in "
            'presets that name it as their "conversation"; other presets talk as the base does'
        )
    if problem is not None:
        yield f"its chat template cannot be used, and the base's is: {problem}"
    if unknown:
        yield f"its stop tokens {', '.join(map(repr, unknown))} are none of the base's tokens"


def _shown(ids: frozenset[int], base: Tokenizer) -> str:
    return ", ".join(f"{base.token_name(i)!r} ({i})" for i in sorted(ids)) or "none"
