"""A base knows where in the model each of its linear layers lies."""

import pytest

from merging.base import locate, split_layer
from tests.merging.tiny import base_of, tiny_gpt2, tiny_llama


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


@pytest.mark.parametrize(
    ("name", "layer", "moved"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3, "model.layers.7.mlp.up_proj.weight"),
        ("h.0.ln_1.bias", 0, "h.7.ln_1.bias"),
        ("model.layers.2.mlp.experts.5.up_proj", 2, "model.layers.7.mlp.experts.5.up_proj"),
    ],
)
def test_a_name_can_be_moved_to_another_layer(name: str, layer: int, moved: str) -> None:
    """The place of a name is kept, and its layer changes."""
    place = locate(name)
    assert place is not None
    assert (place.layer, place.at(layer), place.at(7)) == (layer, name, moved)


@pytest.mark.parametrize("name", ["lm_head.weight", "wte2.weight", "norm_1.weight"])
def test_names_outside_the_layers_have_no_place(name: str) -> None:
    """Embeddings, norms and heads lie in no layer, whatever digits their names have."""
    assert locate(name) is None


def test_module_index_is_the_order_of_the_linears() -> None:
    """Columns of a blend follow the model's own order."""
    base = base_of(tiny_llama())
    assert list(base.module_index) == list(base.linears)
    assert base.module_index["lm_head"] == len(base.linears) - 1


def test_a_transposed_linear_has_the_shape_of_its_product() -> None:
    """GPT-2's Conv1D counts as [out, in], however its weight is stored."""
    linear = base_of(tiny_gpt2()).linears["transformer.h.0.attn.c_attn"]
    assert (linear.out_features, linear.in_features, linear.transposed) == (48, 16, True)
