"""A blend of adapters as one PEFT LoRA: the factors of all, stacked along the rank."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from merging.adapter import LowRank
from merging.adapter_config import FILE
from merging.adapter_files import BASE_DIGEST_KEYS, WEIGHTS
from merging.adapter_names import PREFIX
from merging.base import Base, split_layer
from merging.blend import Blend
from merging.errors import OutputError
from merging.safetensors_file import SafetensorsFile, TensorSpec
from merging.wording import shown

VLLM_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`; its default is 16."""


@dataclass(frozen=True, slots=True, eq=False)
class ExportedAdapter:
    """One adapter with the delta of a blend. `factors` have scale 1, and are by module path.

    `errors` has, for each module that was cut to a smaller rank, the Frobenius norm of what was cut
    off over that of the whole delta; `error` is the same over all modules together.
    """

    factors: Mapping[str, LowRank]
    errors: Mapping[str, float]
    error: float

    @property
    def max_rank(self) -> int:
        return max(factor.rank for factor in self.factors.values())

    @property
    def is_uniform(self) -> bool:
        """Whether all modules have one rank."""
        return all(factor.rank == self.max_rank for factor in self.factors.values())


def stack_blend(blend: Blend, base: Base) -> ExportedAdapter:
    """The exact sum of a blend's deltas, of the summed rank, in float32.

    For each module `B' = [c_1 s_1 B_1, ..., c_n s_n B_n]` and `A' = [A_1; ...; A_n]`, so that
    `B' A' = sum_i c_i s_i B_i A_i` without the cross terms that adding factors would bring.

    Raises OutputError if the blend is no sum of deltas alone, or is nothing at all.
    """
    scales = blend.base_scales
    if scales is not None and bool((scales != 1).any()):
        scaled = [m for m, i in base.module_index.items() if scales[i] != 1]
        raise OutputError(
            f"the merge scales the base's own weights of {shown(scaled)}, which an adapter cannot "
            "do: export it as a checkpoint"
        )
    factors = {
        module: _stacked(parts) for module in base.linears if (parts := _parts(blend, base, module))
    }
    if not factors:
        raise OutputError("the merge is the base itself: there is nothing that an adapter could do")
    large = [m for m, factor in factors.items() if not torch.isfinite(factor.b).all()]
    if large:
        raise OutputError(f"the factors of {shown(large)} are not finite in float32")
    return ExportedAdapter(factors, {}, 0.0)


def _parts(blend: Blend, base: Base, module: str) -> list[tuple[LowRank, float]]:
    """The factors on a module, each with its factor on `B A`."""
    column = base.module_index[module]
    found = []
    for adapter, row in zip(blend.adapters, blend.coefficients, strict=True):
        coefficient = float(row[column])
        if module in adapter.factors and coefficient:
            factor = adapter.factors[module]
            found.append((factor, coefficient * factor.scale))
    return found


def _stacked(parts: list[tuple[LowRank, float]]) -> LowRank:
    a = torch.cat([factor.a.float() for factor, _ in parts])
    b = torch.cat([(scale * factor.b.double()).float() for factor, scale in parts], dim=1)
    return LowRank(a, b, 1.0)


def cut_rank(adapter: ExportedAdapter, rank: int) -> ExportedAdapter:
    """The closest adapter of at most this rank on each module (Eckart and Young).

    The SVD is of a matrix of the stacked ranks, never of the dense delta: with `B = Q_b R_b` and
    `A^T = Q_a R_a`, the singular values of `B A` are those of `R_b R_a^T`.
    """
    factors, errors = {}, {}
    lost = total = 0.0
    for module, factor in adapter.factors.items():
        factors[module], tail, whole = _cut(factor, rank)
        lost, total = lost + tail, total + whole
        if factor.rank > rank:
            errors[module] = math.sqrt(tail / whole) if whole else 0.0
    return ExportedAdapter(factors, errors, math.sqrt(lost / total) if total else 0.0)


def _cut(factor: LowRank, rank: int) -> tuple[LowRank, float, float]:
    """The factor at the rank, and the squared norms of what was cut off and of the whole."""
    q_b, r_b = torch.linalg.qr(factor.b.double())
    q_a, r_a = torch.linalg.qr(factor.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    whole = float((s * s).sum())
    if factor.rank <= rank:
        return factor, 0.0, whole
    root = s[:rank].sqrt()
    b, a = (q_b @ u[:, :rank]) * root, root[:, None] * (vh[:rank] @ q_a.T)
    return LowRank(a.float(), b.float(), 1.0), float((s[rank:] * s[rank:]).sum()), whole


def pad_rank(adapter: ExportedAdapter) -> ExportedAdapter:
    """The same delta with every module of the largest rank: what is added is zeros."""
    rank = adapter.max_rank
    factors = {
        module: LowRank(
            torch.nn.functional.pad(factor.a, (0, 0, 0, rank - factor.rank)),
            torch.nn.functional.pad(factor.b, (0, rank - factor.rank)),
            1.0,
        )
        for module, factor in adapter.factors.items()
    }
    return ExportedAdapter(factors, adapter.errors, adapter.error)


def write_adapter(
    folder: Path,
    adapter: ExportedAdapter,
    base: Base,
    *,
    base_name: str | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, with the digest of the base.

    `base_name` is recorded as the base's hub id, None if nobody knows it. Raises OutputError if
    `dtype` cannot hold the factors, and OSError as the disk gives it.
    """
    tensors = {
        f"{PREFIX}{module}.lora_{letter}.weight": tensor.to(dtype)
        for module, factor in adapter.factors.items()
        for letter, tensor in (("A", factor.a), ("B", factor.b))
    }
    large = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if large:
        raise OutputError(f"{shown(large)} overflow in {dtype}: choose bfloat16 or float32")
    specs = [TensorSpec(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    metadata = {"format": "pt"}
    if base.digest:
        metadata[BASE_DIGEST_KEYS[0]] = base.digest
    file = SafetensorsFile(folder / WEIGHTS, specs, metadata)
    for name, tensor in tensors.items():
        file.tensor(name).copy_(tensor)
    file.flush()
    config = json.dumps(adapter_config(adapter, base, base_name), indent=2)
    (folder / FILE).write_text(config + "\n")


def adapter_config(
    adapter: ExportedAdapter, base: Base, base_name: str | None
) -> dict[str, object]:
    """What PEFT must know. Rank and alpha are the largest rank, so that the scale is 1 also where
    patterns are not read.
    """
    rank = adapter.max_rank
    patterns = {m: factor.rank for m, factor in adapter.factors.items() if factor.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": list(adapter.factors),
        "fan_in_fan_out": any(base.linears[module].transposed for module in adapter.factors),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def caveats(adapter: ExportedAdapter, base: Base) -> Iterator[str]:
    """What some servers refuse, or take in another sense, of such an adapter."""
    rank = adapter.max_rank
    allowed = next((limit for limit in VLLM_RANKS if limit >= rank), None)
    if allowed is None:
        yield (
            f"its rank is {rank}: vLLM takes {VLLM_RANKS[-1]} at most; give --rank for an "
            "approximation, or export a checkpoint"
        )
    else:
        yield f"its rank is {rank}: vLLM needs --max-lora-rank {allowed}"
    if not adapter.is_uniform:
        yield (
            "its modules have different ranks (rank_pattern): some servers refuse that, and "
            "llama.cpp scales by each module's own rank; --uniform-rank pads with zeros, exactly"
        )
    outside = [module for module in adapter.factors if split_layer(module)[0] is None]
    if outside:
        tied = "; it is tied to the embedding, which stays as it is" if base.tied_embeddings else ""
        yield f"it changes {shown(outside)}, which some servers refuse{tied}"
