"""`mergeserve inspect`: what a folder is, and what would be done with it as a source."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from merging.adapter import Adapter, BaseTensor, check_adapter, read_adapter
from merging.adapter_config import FILE, AdapterConfig, read_config
from merging.adapter_fit import under_model_names
from merging.base import Base
from merging.checkpoint import tensor_entries
from merging.checkpoint_fit import fit_checkpoint
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.errors import SourceError
from merging.explanation import group_coefficients
from merging.wording import shown

Line = tuple[str, str]
"""A label, and what to say of it."""


def inspect_folder(
    folder: Path,
    base: Base | None,
    *,
    base_tensor: BaseTensor | None = None,
    resident: Callable[[], CheckpointWeights] | None = None,
    allow_base_mismatch: bool = False,
) -> str:
    """Report on a folder as text. With a `base` it also says whether the folder fits it.

    Nothing is raised for a folder that cannot be used: the report says so, with every reason. For
    an adapter the base's weights are not needed, but for what `base_tensor` looks up (see
    `check_adapter`); a checkpoint is compared with the base's files, which `resident` opens.
    """
    if (folder / FILE).is_file() or any(folder.glob("adapter_model.*")):
        lines = _adapter_lines(folder, base, base_tensor, allow_base_mismatch)
        return _report(folder, "an adapter (PEFT)", lines)
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return _report(folder, "a full checkpoint", _checkpoint_lines(folder, base, resident))
    names = shown(sorted(path.name for path in folder.iterdir()), limit=8) or "nothing"
    return _report(folder, "neither an adapter nor a checkpoint", [("contains", names)])


def _report(folder: Path, kind: str, lines: Iterable[Line]) -> str:
    return "\n".join([f"{folder}: {kind}", *(f"  {label:<10} {text}" for label, text in lines)])


def _adapter_lines(
    folder: Path, base: Base | None, base_tensor: BaseTensor | None, allow_base_mismatch: bool
) -> Iterator[Line]:
    try:
        adapter = read_adapter(folder)
    except SourceError as error:
        yield from _config_lines(folder)
        yield from _refused(error)
        return
    yield from _factor_lines(adapter, read_config(folder))
    if base is None:
        yield "base", "not compared; name a base with --model to see whether the adapter fits it"
        yield "outcome", "can be served as a blend, on a base that it fits"
        return
    try:
        warnings = check_adapter(
            under_model_names(adapter, base),
            base,
            allow_base_mismatch=allow_base_mismatch,
            base_tensor=base_tensor,
        )
    except SourceError as error:
        yield "base", f"{base.name}, {base.digest}"
        yield from _refused(error)
        return
    yield "base", f"{base.name}, {base.digest}: it fits"
    yield from (("warning", warning) for warning in warnings)
    yield "outcome", "served as a blend: no weights are written, and every weight can change live"


def _refused(error: SourceError) -> Iterator[Line]:
    yield "outcome", "refused"
    yield from (("reason", reason) for reason in error.reasons)


def _config_lines(folder: Path) -> Iterator[Line]:
    """What the config alone says, for an adapter that cannot be read."""
    try:
        config = read_config(folder)
    except SourceError:
        return  # the reason is reported with the refusal
    if not config.refusals.keys() & {"r", "lora_alpha"}:
        yield "rank", str(config.rank)
        yield "alpha", f"{config.alpha:g}"
    yield "trained on", config.base_name or "not recorded"


def _factor_lines(adapter: Adapter, config: AdapterConfig) -> Iterator[Line]:
    factors = adapter.factors
    dtypes = sorted({str(f.a.dtype).removeprefix("torch.") for f in factors.values()})
    yield "rank", ", ".join(map(str, sorted({factor.rank for factor in factors.values()})))
    yield "alpha", ", ".join(f"{alpha:g}" for alpha in sorted(set(map(config.alpha_of, factors))))
    for group in group_coefficients({name: factor.scale for name, factor in factors.items()}):
        layers = "" if group.layers is None else "layers {}-{}: ".format(*group.layers)
        yield "scale", f"{group.coefficient:g} on {layers}{', '.join(group.modules)}"
    yield "size", f"{_bytes(adapter.num_bytes)} in {', '.join(dtypes)}, {len(factors)} modules"
    yield "digest", adapter.digest
    recorded = ", ".join(filter(None, (adapter.base_name, adapter.base_digest)))
    yield "trained on", recorded or "not recorded"


def _checkpoint_lines(
    folder: Path, base: Base | None, resident: Callable[[], CheckpointWeights] | None
) -> Iterator[Line]:
    try:
        entries = tensor_entries(folder)
        weights = open_checkpoint(folder)
    except SourceError as error:
        yield from _refused(error)
        return
    yield "tensors", f"{len(entries)} in {', '.join(sorted({e.dtype for e in entries.values()}))}"
    yield "size", _bytes(weights.num_bytes)
    yield "digest", weights.digest
    if base is None or resident is None:
        yield "base", "not compared; name a base with --model to see whether the checkpoint fits it"
        yield "outcome", "can be a base, or a source of merges on a base that it fits"
        return
    try:
        _, warnings = fit_checkpoint(weights, base, resident())
    except SourceError as error:
        yield from _refused(error)
        return
    yield "base", f"{base.name}: it fits"
    yield from (("warning", warning) for warning in warnings)
    yield "outcome", "served as a variant: its merges are built as weights of their own"


def records_base(folder: Path) -> bool:
    """Whether an adapter's folder records the digest of its base."""
    try:
        return read_adapter(folder).base_digest is not None
    except SourceError:
        return False


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
