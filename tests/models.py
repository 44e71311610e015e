"""Tiny random models of many families: breadth without weights to download."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tokenizers import byte_tokenizer

VOCAB_SIZE = 259
"""The three special tokens and the bytes of `tests.tokenizers.byte_tokenizer`."""

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", **_SMALL, "tie_word_embeddings": True},
    "llama-untied": {"model_type": "llama", **_SMALL, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", **_SMALL, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_SMALL, "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", **_SMALL, "sliding_window": 7},
    "gemma2": {
        "model_type": "gemma2",
        **_SMALL,
        "sliding_window": 7,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_SMALL,
        "sliding_window": 7,
        "tie_word_embeddings": False,
    },
    "phi3": {"model_type": "phi3", **_SMALL, "tie_word_embeddings": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB_SIZE,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt-neox": {
        "model_type": "gpt_neox",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
}


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A float32 model of `family` with weights large enough that its greedy text is not one token
    repeated.
    """
    options = dict(FAMILIES[family])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
            elif "bias" in name:
                parameter.normal_(std=0.05)
    return model.float().eval()


def save_tiny_model(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Write such a model with a tokenizer of single bytes, as a folder that the server can load."""
    tiny_model(family, seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
