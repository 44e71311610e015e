"""config.json of a merged model: the base's, with another dtype, depth or an untied head."""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from merging.errors import OutputError

DEPTH_KEYS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How families name their number of layers."""

LAYER_WORDS: Final = ("layer", "block")
"""A list of one entry a layer has one of these in its name."""

INDEX_KEYS: Final = ("mlp_only_layers", "cross_attention_layers")
"""Lists of the numbers of layers."""

NESTED: Final = "text_config"

Config = Mapping[str, JsonValue]


def merged_config(
    config: Config, *, dtype: str, layers: Sequence[int], is_tied: bool
) -> dict[str, JsonValue]:
    """The config of a model of this dtype whose layer `i` is built like the base's `layers[i]`.

    `is_tied`: whether the head still is the embedding. Raises OutputError if `config` does not say
    how many layers the base has, and the merge has others.
    """
    merged = dict(config)
    nested = merged.get(NESTED)
    if isinstance(nested, dict):
        merged[NESTED] = merged_config(nested, dtype=dtype, layers=layers, is_tied=is_tied)
    merged["dtype"] = merged["torch_dtype"] = dtype  # the name in transformers 5, and the old one
    if not is_tied:
        merged["tie_word_embeddings"] = False
    depth_keys = [key for key in DEPTH_KEYS if isinstance(config.get(key), int)]
    if not depth_keys:
        if isinstance(nested, dict):
            return merged
        raise OutputError("the base's config.json does not say how many layers it has")
    for key in depth_keys:
        depth = config[key]
        assert isinstance(depth, int)
        if list(layers) != list(range(depth)):
            _stack(merged, key, depth, layers)
    return merged


def _stack(merged: dict[str, JsonValue], depth_key: str, depth: int, layers: Sequence[int]) -> None:
    """Give every list of one entry a layer the entries of the layers that are stacked."""
    merged[depth_key] = len(layers)
    for key, value in merged.items():
        if not isinstance(value, list):
            continue
        if key in INDEX_KEYS:
            merged[key] = [new for new, old in enumerate(layers) if old in value]
        elif len(value) == depth and any(word in key for word in LAYER_WORDS):
            merged[key] = [value[old] for old in layers]
