"""A PEFT LoRA adapter in memory: the low-rank factors of each module that it changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from merging import mlx_adapter
from merging.adapter_config import AdapterConfig, read_config
from merging.adapter_features import DENSE
from merging.adapter_files import is_mlx, recorded_digest, weights_file
from merging.adapter_names import peft_names
from merging.adapter_tensors import AdapterTensors, sort_tensors, value_problem
from merging.base import HUB_ID, Base, split_layer
from merging.checkpoint import read_tensors
from merging.digest import content_digest, json_digest, value_digest
from merging.errors import BaseMismatchError, DenseDeltaError, SourceError
from merging.wording import grouped, shown

BaseTensor = Callable[[str], torch.Tensor | None]
"""Looks up a tensor of the base by its name in the model; None if the base has none of the name."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """One module's delta, `scale * b @ a`.

    `a`: [rank, in_features]; `b`: [out_features, rank]; `scale`: alpha / r, or alpha / sqrt(r) with
    rslora.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in memory. `digest` hashes its content, so it is its identity under any name.

    `factors` are by module path, sorted. `base_copies`: beside an adapter on the head PEFT saves
    tensors of the base itself; here are the digests of their values, by the base's tensor name.
    `targets`: names of modules, all of which it says it changes (see `AdapterConfig`).
    """

    digest: str
    factors: Mapping[str, LowRank]
    base_name: str | None
    base_digest: str | None
    path: Path
    num_bytes: int
    base_copies: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()


class Recorded(Protocol):
    """What an adapter's files say of the base that it was trained on."""

    @property
    def base_name(self) -> str | None:
        """Its name: a hub id or a path."""

    @property
    def base_digest(self) -> str | None:
        """The digest of its content."""


def read_adapter(folder: Path) -> Adapter:
    """Read a folder of PEFT, adapter_config.json and adapter_model.safetensors, or of MLX, with
    adapters.safetensors; the factors keep their dtype.

    The tensors are copies: later changes on disk do not matter. The digest covers tensors and
    scales, and so all that changes the result: no paths, no names, no training settings.

    Raises DenseDeltaError with every reason why it is not a static low-rank delta on linear layers,
    if PEFT may merge it; else SourceError with every reason why it cannot be used.
    """
    config, path = read_config(folder), weights_file(folder)
    if "peft_type" in config.dense and not config.refusals:
        raise DenseDeltaError(list(config.dense.values()))
    header, tensors = read_tensors(path)
    parts = sort_tensors(
        mlx_adapter.peft_tensors(tensors) if is_mlx(folder) else peft_names(tensors)
    )
    dense = {**config.dense, **parts.dense, **_tied(parts, config)}
    if dense and not config.refusals:
        raise DenseDeltaError(list(dense.values()))
    refusals = {**parts.refusals, **config.refusals}
    reasons = [*refusals.values(), *grouped(_problems(parts, config))]
    if reasons:
        raise SourceError(reasons)
    factors = {
        module: LowRank(parts.a[module], parts.b[module], config.scale_of(module))
        for module in parts.a
    }
    return Adapter(
        digest=_digest(factors),
        factors=factors,
        base_name=config.base_name,
        base_digest=recorded_digest(header),
        path=folder,
        num_bytes=sum(factor.num_bytes for factor in factors.values()),
        base_copies=parts.base_copies,
        targets=config.targets,
    )


def _tied(parts: AdapterTensors, config: AdapterConfig) -> Mapping[str, str]:
    """Whether head and embedding are changed together."""
    outside = any(split_layer(module)[0] is None for module in parts.a)
    key = "ensure_weight_tying"
    return {key: f"{key}: {DENSE[key]}"} if config.ties_head and outside else {}


def _problems(parts: AdapterTensors, config: AdapterConfig) -> Iterator[tuple[str, str]]:
    """What is wrong with the factors of each module: (module, problem)."""
    for module in sorted(parts.a.keys() ^ parts.b.keys()):
        here, missing = ("A", "B") if module in parts.a else ("B", "A")
        yield module, f"has lora_{here}, and no lora_{missing}"
    for module in sorted(parts.a.keys() & parts.b.keys()):
        for problem in _pair_problems(module, parts.a[module], parts.b[module], config):
            yield module, problem


def _pair_problems(
    module: str, a: torch.Tensor, b: torch.Tensor, config: AdapterConfig
) -> Iterator[str]:
    rank, shapes = config.rank_of(module), f"has lora_A {list(a.shape)}, lora_B {list(b.shape)}"
    if a.ndim != 2 or b.ndim != 2:
        yield f"{shapes}: only linear layers, with two dimensions, are supported"
    elif a.shape[0] != b.shape[1]:
        yield f"{shapes}, which are of different ranks"
    elif rank and a.shape[0] != rank:
        yield f"{shapes}, of rank {a.shape[0]}, and the config gives it rank {rank}"
    for letter, tensor in (("A", a), ("B", b)):
        if problem := value_problem(tensor):
            yield f"lora_{letter} {problem}"


def _digest(factors: Mapping[str, LowRank]) -> str:
    rows = [
        [module, factor.scale, content_digest(factor.a), content_digest(factor.b)]
        for module, factor in sorted(factors.items())
    ]
    return json_digest(rows)


def check_adapter(
    adapter: Adapter,
    base: Base,
    *,
    allow_base_mismatch: bool = False,
    base_tensor: BaseTensor | None = None,
) -> list[str]:
    """Check that an adapter fits the base, and return warnings, such as another base's name.

    `base_tensor` is asked only where the adapter holds copies of the base's own tensors
    (`Adapter.base_copies`). They must be equal; without it they are refused.

    Raises SourceError with every reason, or BaseMismatchError if one of them is that the adapter
    records the digest of another base. With `allow_base_mismatch` that alone is a warning.
    DenseDeltaError if all that is wrong are copies with other values: layers that were trained.
    """
    foreign, other = _copy_reasons(adapter, base_tensor)
    reasons = [*_module_reasons(adapter, base), *foreign]
    if other and not reasons:
        raise DenseDeltaError(other)
    reasons += other
    warnings = check_recorded(adapter, base, allow_base_mismatch, reasons)
    return [*warnings, *_tied_head(adapter, base)]


def check_recorded(
    adapter: Recorded, base: Base, allow_base_mismatch: bool, reasons: Sequence[str] = ()
) -> list[str]:
    """Check what an adapter records of its base, and return warnings. Raises SourceError with the
    `reasons` that there are already, or BaseMismatchError, which adds that the digest is another.
    """
    mismatch = _mismatch(adapter, base)
    if mismatch and not allow_base_mismatch:
        raise BaseMismatchError([mismatch, *reasons])
    if reasons:
        raise SourceError(reasons)
    if mismatch:
        return [mismatch]
    other = other_base(adapter, base)
    return [] if other is None else [other]


def _mismatch(adapter: Recorded, base: Base) -> str | None:
    recorded = adapter.base_digest
    if recorded is None or _hex(recorded) == _hex(base.digest):
        return None
    return (
        f"it was trained on another base: it records the base digest {recorded}, and {base.name} "
        f"has {base.digest}"
    )


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:").lower()


def other_base(adapter: Recorded, base: Base) -> str | None:
    """What an adapter records of its base, if that is another one: its digest, else its name.

    Names are compared only where both are ids of a hub: folders are called anything.
    """
    if adapter.base_digest is not None:
        return _mismatch(adapter, base)
    name = adapter.base_name
    if name is None or base.hub_id is None or not HUB_ID.fullmatch(name):
        return None
    if _last(name) == _last(base.hub_id):
        return None
    return f"it was trained on a base named {name!r}, and this one is {base.hub_id!r}"


def _tied_head(adapter: Adapter, base: Base) -> Iterator[str]:
    tied = [module for module in adapter.factors if f"{module}.weight" in base.ties]
    if tied:
        yield (
            f"{shown(tied)} shares its weights with the embedding in this base; the adapter "
            "changes the head only, as in PEFT"
        )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _module_reasons(adapter: Adapter, base: Base) -> Iterator[str]:
    unknown = [module for module in adapter.factors if module not in base.linears]
    if unknown:
        yield f"the base has no linear layer named {shown(unknown)}"
    ends = tuple(f".{target}" for target in adapter.targets)
    targeted = (module for module in base.linears if f".{module}".endswith(ends))
    missing = [module for module in targeted if module not in adapter.factors]
    if missing:
        yield f"its config targets {shown(missing)}, and it has no factors for them"
    large = [module for module, factor in adapter.factors.items() if _overflows(factor, base)]
    if large:
        yield f"the factors of {shown(large)} are too large for the base's {base.dtype}"
    yield from grouped(_wrong_shapes(adapter, base))


def _overflows(factor: LowRank, base: Base) -> bool:
    dtype: torch.dtype = getattr(torch, base.dtype)
    return any(not torch.isfinite(part.to(dtype)).all() for part in (factor.a, factor.b))


def _wrong_shapes(adapter: Adapter, base: Base) -> Iterator[tuple[str, str]]:
    for module, factor in adapter.factors.items():
        linear = base.linears.get(module)
        shape = [factor.b.shape[0], factor.a.shape[1]]
        if linear is not None and shape != [linear.out_features, linear.in_features]:
            expected = [linear.out_features, linear.in_features]
            yield module, f"the adapter is for {shape} [out, in], the base has {expected}"


def _copy_reasons(adapter: Adapter, base_tensor: BaseTensor | None) -> tuple[list[str], list[str]]:
    """Why tensors of the base that it holds cannot be used; and which have other values."""
    foreign, other = [], []
    for name, digest in sorted(adapter.base_copies.items()):
        tensor = base_tensor(name) if base_tensor is not None else None
        if base_tensor is None:
            foreign.append(
                f"it holds a copy of {name}, and the base's own is not at hand to compare"
            )
        elif tensor is None:
            foreign.append(f"it holds {name}, which is neither a factor nor a tensor of the base")
        elif value_digest(tensor) != digest:
            other.append(
                f"it holds {name} with other values or another shape than the base's "
                f"{list(tensor.shape)}"
            )
    return foreign, other
