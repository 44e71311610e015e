"""Variants of a bench's model with given tensors, and dense models with the same."""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from merging.base import locate
from server.engine.variant import Unfinished, Variant
from tests.server.engine.conftest import DEVICE, Bench

Tensors = Mapping[str, torch.Tensor]


def source_name(name: str, layers: Sequence[int]) -> str:
    """The tensor of the base that `name`, in a stack of `layers`, is built like."""
    place = locate(name)
    return name if place is None else place.at(layers[place.layer])


def own_layers(bench: Bench) -> list[int]:
    return list(range(bench.base.num_layers))


def random_changes(
    bench: Bench, names: Collection[str], layers: Sequence[int], seed: int
) -> dict[str, torch.Tensor]:
    """What the tensors `names` of a stack are in the base, plus noise."""
    state = bench.reference.state_dict()
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name in names:
        tensor = state[source_name(name, layers)]
        noise = torch.randn(tensor.shape, generator=generator) * 0.1
        changes[name] = tensor + noise
    return changes


def write(bench: Bench, unfinished: Unfinished, changes: Tensors, layers: Sequence[int]) -> Variant:
    """Fill in `changes`, and the base's own values for the rest."""
    state = bench.reference.state_dict()
    assert set(changes) <= unfinished.names
    for name in unfinished.names:
        value = changes[name] if name in changes else state[source_name(name, layers)]
        unfinished.tensor(name).copy_(value)
    return unfinished.finish()


def make_variant(
    bench: Bench, changes: Tensors, layers: Sequence[int] | None = None, digest: str = "variant"
) -> Variant:
    """A variant of the bench's model."""
    layers = own_layers(bench) if layers is None else layers
    return write(bench, bench.variants.start(digest, layers, list(changes)), changes, layers)


def dense_model(
    bench: Bench, changes: Tensors, layers: Sequence[int] | None = None
) -> PreTrainedModel:
    """Transformers' own model with those tensors and layers."""
    layers = own_layers(bench) if layers is None else layers
    config = copy.deepcopy(bench.reference.config)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[layer] for layer in layers]
    config.num_hidden_layers = len(layers)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight and "lm_head.weight" in changes:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    state = bench.reference.state_dict()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            value = changes[name] if name in changes else state[source_name(name, layers)]
            tensor.copy_(value)
    return model.to(DEVICE)
