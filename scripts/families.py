"""A tiny config of every decoder-only text family of transformers that can be made tiny.

docs/models.md is written from it, and the tests take their models from it.
"""

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

VOCAB_SIZE = 259
WINDOW = 7

Options = dict[str, object]

SMALL: Options = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
"""What most configs call these things; one that does not know a name keeps it unread."""

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LATENT: Options = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 12,
}
SHARED: Options = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
VISION: Options = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_VISION: Options = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2}
TEXT: Options = {name: SMALL[name] for name in list(SMALL)[:8]}
WINDOWS: Options = {**TEXT, "sliding_window": WINDOW}
MROPE: Options = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}

PLAIN = [
    "afmoe",
    "apertus",
    "arcee",
    "aria_text",
    "beam",
    "biogpt",
    "bitnet",
    "bloom",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "ctrl",
    "cwm",
    "diffllama",
    "doge",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "flex_olmo",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_neox_japanese",
    "gpt_oss",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "hyperclovax",
    "jais2",
    "jetmoe",
    "kolibri1",
    "laguna",
    "llama",
    "mellum",
    "mimo_v2_flash",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
]

FAMILIES: dict[str, Options] = {
    **{name: {} for name in PLAIN},
    "axk1": LATENT,
    "codegen": {"rotary_dim": 8},
    "ctrl": {"dff": 48},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "falcon": {"head_dim": None, "alibi": True},
    "flint": {},
    "gemma3n_text": {
        **SHARED,
        "intermediate_size": [48] * 4,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**SHARED, "global_head_dim": 12},
    "glm4_moe_lite": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["local"], 1]], "window_size": 7},
    "gptj": {"rotary_dim": 8},
    "hrm_text": {},
    "llama4_text": {"attention_chunk_size": WINDOW, "floor_scale": 4, "intermediate_size_mlp": 48},
    "longcat_flash": {**LATENT, "num_layers": 2},
    "minicpm3": LATENT,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "xglm": {"ffn_dim": 48},
    "youtu": LATENT,
}
"""What each family's config has beside or in place of `SMALL`."""

VISION_FAMILIES: dict[str, Options] = {
    "gemma3": {
        "text_config": {**TEXT, "layer_types": MIXED},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "internvl": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {**VISION, "image_size": [8, 8], "patch_size": [4, 4]},
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
    "mistral3": {
        "text_config": {**WINDOWS, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
    },
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_VISION, "hidden_size": 32},
    },
    "qwen2_5_vl": {
        "text_config": {
            **WINDOWS,
            "rope_parameters": MROPE,
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
        "vision_config": {**QWEN_VISION, "out_hidden_size": 32, "intermediate_size": 16},
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        "vision_config": {
            **QWEN_VISION,
            "out_hidden_size": 32,
            "intermediate_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
    "smolvlm": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": VISION,
        "scale_factor": 2,
    },
}
"""Models that take images too: their text models are served."""

STATEFUL = [
    "bamba",
    "deepseek_v32",
    "deepseek_v4",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "inkling2_text",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
]
"""Families that keep more than keys and values, or compress them: not served, nor tried."""


def tiny_config(family: str) -> PreTrainedConfig:
    """A config of `family` with about 50,000 parameters. Where layers may have windows, some do."""
    if family in VISION_FAMILIES:
        return AutoConfig.for_model(family, **VISION_FAMILIES[family])
    merged = {**SMALL, **FAMILIES[family]}
    options = {name: value for name, value in merged.items() if value is not None}
    if not hasattr(CONFIG_MAPPING[family], "sliding_window"):
        del options["sliding_window"]  # transformers' cache would heed it, and its masks not
    config = AutoConfig.for_model(family, **options)
    kinds = getattr(config, "layer_types", None)
    if kinds and "layer_types" not in options and "sliding_attention" in kinds:
        config = AutoConfig.for_model(family, **options, layer_types=MIXED)
    return config
