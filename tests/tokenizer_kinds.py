"""Tiny tokenizers of every kind that models have, made on the spot."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
WORDS = ("the", "water", "is", "true", "wet")
CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz.,")


def fast(tokenizer: Tokenizer, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; with `adds_bos` it puts <s> in front of a text."""
    tokenizer.add_special_tokens(list(SPECIAL))
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bpe(words: Sequence[str], *, mark: str, others: Sequence[str], **options: object) -> models.BPE:
    """A BPE model that makes words, with or without the `mark` of a space, of characters."""
    vocabulary, merges = [*SPECIAL, *others], []
    for word in words:
        built = word[0]
        for character in word[1:]:
            if (built, character) not in merges:
                merges.append((built, character))
                vocabulary.append(built + character)
            built += character
        merges.append((mark, word))
        vocabulary.append(mark + word)
    unique = dict.fromkeys(vocabulary)
    vocab = {token: index for index, token in enumerate(unique)}
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", **options)


def byte_level(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen and SmolLM2: tokens are bytes, written as characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(bpe(WORDS, mark="Ġ", others=alphabet))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer, adds_bos=adds_bos)


def sentencepiece(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral 7B and Phi-3: spaces are ▁, unknown characters are bytes, and the decoder
    strips the first space.
    """
    others = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CHARACTERS]
    tokenizer = Tokenizer(bpe(WORDS, mark="▁", others=others, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast(tokenizer, adds_bos=adds_bos)


def gemma(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As Gemma: the same without a space put in front, and nothing is stripped."""
    tokenizer = sentencepiece(adds_bos=adds_bos)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def unigram(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As T5, XGLM and Albert: the pieces of a text have scores, and Metaspace marks the spaces."""
    pieces = [*SPECIAL, "▁", *CHARACTERS, *(f"▁{word}" for word in WORDS), *WORDS]
    scores = [(piece, -len(CHARACTERS) / len(piece)) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer, adds_bos=adds_bos)


def wordpiece(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As BERT: pieces within a word are marked instead of spaces."""
    pieces = [*SPECIAL, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return fast(tokenizer, adds_bos=adds_bos)


def word_ends(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """As the first GPT: the end of a word is marked."""
    letters = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    vocab = {piece: index for index, piece in enumerate([*SPECIAL, *letters])}
    model = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    return fast(tokenizer, adds_bos=adds_bos)


KINDS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    maker.__name__: maker
    for maker in (byte_level, sentencepiece, gemma, unigram, wordpiece, word_ends)
}
