"""Whether two models compute the same with the same weights: from their config.json."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import JsonValue

Config = Mapping[str, JsonValue]

ACTIVATIONS: Final = ("hidden_activation", "hidden_act", "activation_function")
"""Keys of the activation; a Gemma with the first ignores the second."""

SAME_ACTIVATION: Final[Mapping[str, str]] = {
    "swish": "silu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"), "gelu_new"),
}
"""Several names of one function."""

HEADS: Final = (
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_heads", "num_kv_heads"),
    *("n_head", "n_heads"),
)
ROPE: Final = ("rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_dim", "rotary_emb_base")
SCALES: Final = (
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "query_pre_attn_scalar"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    *("logit_scale", "use_parallel_residual", "parallel_attn"),
)
CAPS: Final = ("attn_logit_softcapping", "final_logit_softcapping")
"""Null is none of it, where for the keys above it is what the model's code takes by default."""

SLIGHT: Final = (
    *("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    *("sliding_window", "tie_word_embeddings"),
)
"""What changes little: far smaller than what it is added to, or only seen by long texts. Whether
heads are tied, the tensors tell.
"""


def config_reason(own: Config, base: Config) -> str | None:
    """Why a model with the config `own` is none to be merged on a base with the config `base`,
    though its weights have the same shapes; None if the base computes what it does.
    """
    mine, others = _computing(own), _computing(base)
    differing = [
        f"{key} {mine[key]!r} (the base's {others[key]!r})"
        for key in mine
        if key in others and not _is_same(mine[key], others[key])
    ]
    if not differing:
        return None
    return (
        f"its config.json has {', '.join(differing)}: with it the same weights compute something "
        "else, and merged they mean nothing; take a fine-tune of this base, or correct that "
        "config.json if it is wrong"
    )


def config_warnings(own: Config, base: Config) -> Iterator[str]:
    """What runs slightly otherwise on the base."""
    for key in SLIGHT:
        if key in own and key in base and not _is_same(own[key], base[key]):
            yield f"its config has {key} {own[key]!r}; it runs with the base's {base[key]!r}"


def _computing(config: Config) -> dict[str, JsonValue]:
    """What a config says of the computation. A key that is absent says nothing: its default is
    that of the model's code.
    """
    found = {key: config[key] for key in (*HEADS, *SCALES) if config.get(key) is not None}
    found |= {key: config[key] for key in CAPS if key in config}
    given = next((config[key] for key in ACTIVATIONS if config.get(key) is not None), None)
    if given is not None:
        # The first Gemmas say gelu and mean its approximation; newer transformers write that.
        name = "gelu_new" if given == "gelu" and config.get("model_type") == "gemma" else str(given)
        found["activation"] = SAME_ACTIVATION.get(name, name)
    return {**found, **_rope(config)}


def _rope(config: Config) -> dict[str, JsonValue]:
    """The rotary embedding, in whichever of the forms that transformers wrote over time."""
    found: dict[str, JsonValue] = {key: config[key] for key in ROPE if config.get(key) is not None}
    parts = [config[key] for key in ("rope_scaling", "rope_parameters") if key in config]
    for part in parts:
        found |= part if isinstance(part, dict) else {}
    is_phi3 = str(config.get("model_type", "")).startswith("phi3")
    kinds = {kind: value for kind, value in found.items() if isinstance(value, dict)}
    if kinds:  # one for each kind of layer
        named = {k: _one_rope(value, is_phi3=is_phi3) for k, value in kinds.items()}
        flat = {key: value for key, value in found.items() if key not in kinds}
        return flat | {f"{k}.{key}": v for k, part in named.items() for key, v in part.items()}
    found = _one_rope(found, is_phi3=is_phi3)
    if parts or "rope_theta" in found:
        found.setdefault("rope_type", "default")
    return found


def _one_rope(given: Config, *, is_phi3: bool) -> dict[str, JsonValue]:
    """Under the names that are used now; null says nothing."""
    found: dict[str, JsonValue] = {k: value for k, value in given.items() if value is not None}
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    if found.get("rope_type") == "su" or (is_phi3 and found.get("rope_type") == "yarn"):
        found["rope_type"] = "longrope"
    return found


def _is_same(one: JsonValue, other: JsonValue) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=1e-6)  # some were float32 once
    return one == other
