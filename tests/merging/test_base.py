"""A base knows where in the model each of its linear layers lies."""

import pytest

from merging.base import split_layer
from tests.merging.tiny import base_of, flat_base, tiny_gpt2, tiny_llama


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", (3, "self_attn.q_proj")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("model.layers.2.mlp.experts.5.up_proj", (2, "mlp.experts.5.up_proj")),
        ("lm_head", (None, "lm_head")),
        ("model.embed_in2", (None, "model.embed_in2")),
    ],
)
def test_the_first_number_of_a_path_is_its_layer(
    module: str, expected: tuple[int | None, str]
) -> None:
    """Layer and kind are read from a module's path, in every naming of layers."""
    assert split_layer(module) == expected


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    """Depth is 0 in the first layer, 1 in the last, and linear between."""
    base = flat_base(num_layers=5)
    depths = [base.depth(f"model.layers.{i}.mlp.up_proj") for i in range(5)]
    assert depths == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_depth_outside_the_layers_is_zero() -> None:
    """Head and embeddings take the first value of a gradient, as in mergekit."""
    assert flat_base().depth("lm_head") == 0.0


def test_depth_in_a_model_of_one_layer_is_one() -> None:
    """A single layer takes the last value of a gradient, as in mergekit."""
    assert flat_base(num_layers=1).depth("model.layers.0.mlp.up_proj") == 1.0


def test_module_index_is_the_order_of_the_linears() -> None:
    """Columns of a blend follow the model's own order."""
    base = base_of(tiny_llama())
    assert list(base.module_index) == list(base.linears)
    assert base.module_index["lm_head"] == len(base.linears) - 1


def test_a_transposed_linear_has_the_shape_of_its_product() -> None:
    """GPT-2's Conv1D counts as [out, in], however its weight is stored."""
    linear = base_of(tiny_gpt2()).linears["transformer.h.0.attn.c_attn"]
    assert (linear.out_features, linear.in_features, linear.transposed) == (48, 16, True)
