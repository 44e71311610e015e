"""`mergeserve inspect`: what a folder is, and what would be done with it as a source."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from merging.adapter import Adapter, BaseTensor, check_adapter, read_adapter
from merging.adapter_config import FILE, AdapterConfig, read_config
from merging.adapter_files import is_mlx
from merging.adapter_fit import under_model_names
from merging.base import Base
from merging.checkpoint import tensor_entries
from merging.checkpoint_fit import fit_checkpoint
from merging.checkpoint_weights import CheckpointWeights, open_checkpoint
from merging.dense_adapter import read_dense_adapter
from merging.errors import DenseDeltaError, SourceError
from merging.explanation import group_coefficients
from merging.overlay_weights import OverlayWeights
from merging.wording import shown

Line = tuple[str, str]
"""A label, and what to say of it."""

Merge = Callable[[Path], tuple[OverlayWeights, list[str]]]
"""Merges the adapter in a folder into the base; with warnings."""

LOW_RANK = "low-rank: its factors blend, and every weight can change live"
DENSE = "dense: PEFT merges it into the base once, and from then on it is like a checkpoint"


def inspect_folder(
    folder: Path,
    base: Base | None,
    *,
    base_tensor: BaseTensor | None = None,
    merge: Merge | None = None,
    resident: Callable[[], CheckpointWeights] | None = None,
    allow_base_mismatch: bool = False,
) -> str:
    """Report on a folder as text. With a `base` it also says whether the folder fits it.

    Nothing is raised for a folder that cannot be used: the report says so, with every reason. For
    an adapter the base's weights are not needed, but for what `base_tensor` looks up (see
    `check_adapter`), unless its delta is dense: then `merge` merges it. A checkpoint is compared
    with the base's files, which `resident` opens.
    """
    if (folder / FILE).is_file() or any(folder.glob("adapter_model.*")):
        lines = _adapter_lines(folder, base, base_tensor, merge, allow_base_mismatch)
        return _report(folder, f"an adapter ({'MLX' if is_mlx(folder) else 'PEFT'})", lines)
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return _report(folder, "a full checkpoint", _checkpoint_lines(folder, base, resident))
    names = shown(sorted(path.name for path in folder.iterdir()), limit=8) or "nothing"
    return _report(folder, "neither an adapter nor a checkpoint", [("contains", names)])


def _report(folder: Path, kind: str, lines: Iterable[Line]) -> str:
    return "\n".join([f"{folder}: {kind}", *(f"  {label:<10} {text}" for label, text in lines)])


def _adapter_lines(
    folder: Path,
    base: Base | None,
    base_tensor: BaseTensor | None,
    merge: Merge | None,
    allow_base_mismatch: bool,
) -> Iterator[Line]:
    try:
        adapter = read_adapter(folder)
    except DenseDeltaError as error:
        yield from _dense_lines(folder, error.reasons, base, merge)
        return
    except SourceError as error:
        yield from _config_lines(folder)
        yield from _refused(error)
        return
    yield from _factor_lines(adapter, read_config(folder))
    yield "delta", LOW_RANK
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
    except DenseDeltaError as error:
        yield from _dense_lines(folder, error.reasons, base, merge)
        return
    except SourceError as error:
        yield "base", f"{base.name}, {base.digest}"
        yield from _refused(error)
        return
    yield "base", f"{base.name}, {base.digest}: it fits"
    yield from (("warning", warning) for warning in warnings)
    yield "outcome", "served as a blend: no weights are written, and every weight can change live"


def _dense_lines(
    folder: Path, reasons: Iterable[str], base: Base | None, merge: Merge | None
) -> Iterator[Line]:
    """Of an adapter that PEFT has to merge: with a base it is merged, to see whether it fits."""
    yield "delta", DENSE
    yield from (("because", reason) for reason in reasons)
    try:
        recorded = read_dense_adapter(folder, tuple(reasons))
        yield "trained on", recorded.base_name or "not recorded"
        if base is None or merge is None:
            yield "base", "not compared; name a base with --model to see what it costs there"
            yield "outcome", "can be served as a variant, on a base that PEFT can merge it into"
            return
        overlay, warnings = merge(folder)
    except SourceError as error:
        yield from _refused(error)
        return
    yield "base", f"{base.name}, {base.digest}: it fits"
    yield from (("warning", warning) for warning in warnings)
    yield "size", f"{_bytes(overlay.num_bytes)} on disk, {len(overlay.own.shapes)} tensors"
    yield "merged in", f"{overlay.seconds:.1f} s, once"
    yield "outcome", "served as a variant: its merges are built as weights of their own"
    yield "convert", "to a LoRA, which blends, with --to-lora RANK --out DIR"


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


def needs_digest(folder: Path) -> bool:
    """Whether the digest of the base matters to an adapter: it records one, or will be merged."""
    try:
        adapter = read_adapter(folder)
        return bool(adapter.base_digest or adapter.base_copies)
    except DenseDeltaError:
        return True
    except SourceError:
        return False


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
