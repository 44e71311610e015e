"""PEFT merges an adapter onto its base, and what differs from the base is written.

Runs in a process of its own (see `process`): nothing of it is imported by the server.
"""

import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import CheckpointWeights, map_checkpoint
from merging.errors import SourceError
from merging.safetensors_file import SafetensorsFile, TensorSpec
from merging.wording import shown
from server.adapters.request import MergeAnswer, MergeRequest
from server.engine.model import describe
from server.engine.model_files import load_network
from server.engine.parameter_names import ParameterNames

NUM_PROBED = 16
"""Tokens of the text that tells whether the merged model computes what PEFT's own forward does."""

MAX_DIFFERENCE = 1e-4
"""Of the logits, over their norm: what is beyond it is no rounding of float32."""

Changed = Mapping[str, torch.Tensor]


def merge(request: MergeRequest) -> MergeAnswer:
    """Do what is asked. One float32 copy of the base is in memory, never a second one.

    Raises SourceError with the reasons if PEFT cannot merge the adapter, or does it inexactly.
    """
    began = perf_counter()
    network = load_network(Path(request.base), torch.float32, torch.device("cpu")).eval()
    names = ParameterNames(network)
    base = describe(network, name="", digest="", dtype=torch.float32)
    resident = under_model_names(map_checkpoint(Path(request.base), ""), base)
    tied = base.ties
    if tied:
        _untie(network)
    if request.start is not None:
        _start_from(network, Path(request.start), names, tied, resident)
    tokens = _probe_tokens(network)
    with torch.inference_mode(False), torch.no_grad():
        model = load_adapter(network, Path(request.adapter))
        before = model(input_ids=tokens, use_cache=False).logits
        merged = _merged(model)
        after = merged(input_ids=tokens, use_cache=False).logits
    difference = float((after - before).norm() / before.norm())
    if not difference <= MAX_DIFFERENCE:
        raise SourceError(
            f"merged into the base it computes something else than PEFT's own forward: the logits "
            f"differ by {difference:.2g} of their norm; it has no static weights that could be "
            "served"
        )
    changed = dict(_changed(merged, names, resident, tied))
    num_bytes = _write(changed, request)
    return MergeAnswer(
        num_tensors=len(changed),
        num_bytes=num_bytes,
        seconds=perf_counter() - began,
        difference=difference,
        peak_bytes=_peak_bytes(),
    )


def load_adapter(network: PreTrainedModel, folder: Path) -> PeftModel:
    """Put an adapter on a network, as PEFT does; SourceError unless all of it finds its place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(network, folder)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(f"PEFT cannot load it on this base: {_first_line(error)}") from error
    for warning in caught:
        text = str(warning.message)
        if "adapter keys" in text or "nexpected keyword" in text:
            raise SourceError(f"PEFT says of it on this base: {text[:1000]}")
    return model.eval()


def _merged(model: PeftModel) -> PreTrainedModel:
    try:
        return model.merge_and_unload()
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise SourceError(f"PEFT cannot merge it into a base: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:1000] or repr(error)


def _untie(network: PreTrainedModel) -> None:
    """Give a tied head weights of its own: an adapter on one of the two leaves the other."""
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _start_from(
    network: PreTrainedModel,
    path: Path,
    names: ParameterNames,
    tied: Mapping[str, str],
    resident: CheckpointWeights,
) -> None:
    """Put the tensors of a file in the place of the base's."""
    with safe_open(path, "pt") as file:
        own = set(file.keys())

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = (
                file.get_tensor(name) if name in own else resident.tensor(tied.get(name, name))
            )
            return tensor

        for parameter, value in network.named_parameters():
            like = parameter
            if parameter in tied and parameter not in own:
                like = tied[parameter]
            if own & names.split(like, value).keys():
                value.detach().copy_(names.join(like, read))


def _probe_tokens(network: PreTrainedModel) -> torch.Tensor:
    """Token ids from all over the vocabulary: [1, NUM_PROBED]."""
    size = network.get_input_embeddings().weight.shape[0]
    return torch.linspace(0, size - 1, min(NUM_PROBED, size)).long()[None]


def _changed(
    merged: PreTrainedModel,
    names: ParameterNames,
    resident: CheckpointWeights,
    tied: Mapping[str, str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the merged model that are not the base's, by the names in its files.

    A head that is still what the embedding is, is left out.
    """
    parameters = dict(merged.named_parameters())
    for parameter, tensor in parameters.items():
        like = tied.get(parameter, parameter)
        if like != parameter:  # a head that was tied
            if not torch.equal(tensor, parameters[like]):
                yield parameter, tensor.detach()
            continue
        for name, part in names.split(parameter, tensor.detach()).items():
            own = resident.shapes.get(name)
            if own != tuple(part.shape):
                raise SourceError(
                    f"it makes {name} {list(part.shape)}, and the base's is "
                    f"{None if own is None else list(own)}: a layer of another size is not taken"
                )
            if not torch.equal(part, resident.tensor(name).float()):
                yield name, part


def _write(changed: Changed, request: MergeRequest) -> int:
    if not changed:
        raise SourceError("merged into the base it changes nothing: it was not trained")
    wrong = [name for name, tensor in changed.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise SourceError(f"merged into the base it gives NaN or infinite values in {shown(wrong)}")
    specs = [TensorSpec(n, torch.float32, tuple(t.shape)) for n, t in changed.items()]
    num_bytes = sum(spec.num_bytes for spec in specs)
    if num_bytes > request.max_bytes:
        raise SourceError(
            f"its dense delta takes {num_bytes:,} bytes, and {request.max_bytes:,} are left: raise "
            "--dense-cache, or convert it to a LoRA"
        )
    file = SafetensorsFile(Path(request.out), specs)
    for name, tensor in changed.items():
        file.tensor(name).copy_(tensor)
        file.release()  # else all of it would stay in memory beside the model
    file.flush()
    return num_bytes


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
