"""The config of a merged model is the base's but for what the merge changed."""

import pytest
from transformers import AutoConfig

from merging.errors import OutputError
from merging.model_config import merged_config

CONFIG = {"model_type": "llama", "num_hidden_layers": 3, "torch_dtype": "bfloat16", "x": [1, 2]}


def test_the_dtype_is_told_in_both_names() -> None:
    """transformers 5 reads `dtype`, others `torch_dtype`; the rest is as it was."""
    merged = merged_config(CONFIG, dtype="float32", layers=range(3), is_tied=True)
    assert merged == {**CONFIG, "dtype": "float32", "torch_dtype": "float32"}


def test_an_untied_head_is_told() -> None:
    """Else readers would tie it again, and lose it."""
    config = {**CONFIG, "tie_word_embeddings": True}
    for is_tied in (True, False):
        merged = merged_config(config, dtype="float32", layers=range(3), is_tied=is_tied)
        assert merged["tie_word_embeddings"] is is_tied


def test_stacked_layers() -> None:
    """The depth, lists of one entry a layer and lists of layers follow the stack; others stay."""
    config = {
        **CONFIG,
        "layer_types": ["full", "sliding", "linear"],
        "mlp_only_layers": [0, 2],
        "eos_token_id": [1, 2, 3],
    }
    merged = merged_config(config, dtype="float32", layers=(0, 1, 1, 2, 0), is_tied=True)
    assert merged["num_hidden_layers"] == 5
    assert merged["layer_types"] == ["full", "sliding", "sliding", "linear", "full"]
    assert merged["mlp_only_layers"] == [0, 3, 4]
    assert merged["eos_token_id"] == [1, 2, 3]


def test_a_permuted_stack_of_the_same_depth() -> None:
    """What counts is which layers, not how many."""
    config = {**CONFIG, "layer_types": ["a", "b", "c"]}
    merged = merged_config(config, dtype="float32", layers=(2, 1, 0), is_tied=True)
    assert merged["layer_types"] == ["c", "b", "a"]


def test_other_names_of_the_depth_and_nested_configs() -> None:
    """GPT-2's `n_layer`, and the text part of a model of several parts."""
    merged = merged_config({"n_layer": 2}, dtype="float32", layers=(0, 0, 1), is_tied=True)
    assert merged["n_layer"] == 3
    nested = {"model_type": "x", "text_config": {**CONFIG, "tie_word_embeddings": True}}
    merged = merged_config(nested, dtype="float32", layers=(0,), is_tied=False)
    assert merged["text_config"]["num_hidden_layers"] == 1
    assert merged["text_config"]["dtype"] == merged["dtype"] == "float32"
    assert merged["text_config"]["tie_word_embeddings"] is merged["tie_word_embeddings"] is False


def test_a_config_without_a_depth_is_refused() -> None:
    """It would be read with the family's default."""
    with pytest.raises(OutputError, match="layers"):
        merged_config({"model_type": "x"}, dtype="float32", layers=(0,), is_tied=True)


def test_transformers_reads_it() -> None:
    """Both names of the dtype together are no contradiction."""
    merged = merged_config(CONFIG, dtype="float16", layers=(0, 1, 2, 2), is_tied=False)
    config = AutoConfig.for_model(**merged)
    assert (str(config.dtype), config.num_hidden_layers) == ("torch.float16", 4)
    assert config.tie_word_embeddings is False
