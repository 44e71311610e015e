"""A model's tree of modules, made again over the same tensors."""

import torch
from torch import nn
from transformers import PreTrainedModel

from server.engine.layer_stack import LayerStack, clone
from tests.models import tiny_model


def plain_objects(module: nn.Module) -> list[object]:
    """The modules, and the dicts and sets that they keep their state in."""
    parts = list(module.modules())
    return [*parts, *(v for part in parts for v in vars(part).values() if type(v) in (dict, set))]


def test_a_clone_shares_tensors_and_nothing_else() -> None:
    """Tensors are the model's own; modules and what these keep their state in are not, so that a
    hook or a buffer of one is not the other's.
    """
    model = tiny_model("llama")
    copied = clone(model, LayerStack("model.layers", (0, 1, 2)), {})
    ours, theirs = model.state_dict(keep_vars=True), copied.state_dict(keep_vars=True)
    assert ours.keys() == theirs.keys()
    assert all(tensor is theirs[name] for name, tensor in ours.items())
    known = {id(each) for each in plain_objects(model)}
    assert len(plain_objects(copied)) == len(known)
    assert not any(id(each) in known for each in plain_objects(copied))


def test_what_is_one_in_a_model_is_one_in_its_clone() -> None:
    """Several references to one object of a model become references to one object."""
    model: PreTrainedModel = tiny_model("llama")
    state = {"list": [1], "module": model.lm_head}
    model.first, model.second = state, [state]  # type: ignore[assignment]
    state["self"] = state
    copied = clone(model, LayerStack("model.layers", (0, 1, 2)), {})
    assert copied.first is copied.second[0] is copied.first["self"]  # type: ignore[index]
    assert copied.first is not state
    assert copied.first["list"] is not state["list"]
    assert copied.first["module"] is copied.lm_head is not model.lm_head


def test_a_clone_computes_the_same() -> None:
    """The clone is a working model."""
    model = tiny_model("llama").eval()
    copied = clone(model, LayerStack("model.layers", (0, 1, 2)), {})
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, copied(tokens).logits)
