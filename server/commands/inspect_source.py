"""What a folder is against a base, and a dense delta as a LoRA."""

from dataclasses import replace
from pathlib import Path

from merging.adapter_export import write_adapter
from merging.checkpoint import checkpoint_digest
from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import map_checkpoint, open_checkpoint
from merging.dense_to_lora import convert_to_lora
from merging.errors import OutputError
from merging.output_folder import output_folder
from merging.wording import shown
from server.commands.progress import ProgressReporter
from server.engine.loading import describe_base
from server.engine.model_files import model_folder
from server.inspection import inspect_folder, needs_digest
from server.offline.opening import OpenBase, open_base


def inspect_against(folder: Path, model: str, *, allow_base_mismatch: bool) -> str:
    """The report. Of the base only the config is read, unless its content decides."""
    base_folder = model_folder(model, lambda what, done, total: None)
    base = describe_base(model)
    if needs_digest(folder):
        base = replace(base, digest=checkpoint_digest(base_folder))

    def opened() -> OpenBase:  # an adapter on linear layers does not need the base's files
        weights = under_model_names(map_checkpoint(base_folder, base.digest), base)
        return OpenBase(model, base_folder, base, weights)

    return inspect_folder(
        folder,
        base,
        base_tensor=lambda name: opened().tensor(name),
        merge=lambda own: opened().adapters(allow_base_mismatch=allow_base_mismatch).merge(own),
        resident=lambda: under_model_names(open_checkpoint(base_folder), base),
        allow_base_mismatch=allow_base_mismatch,
    )


def write_lora(folder: Path, model: str, rank: int, out: Path, *, allow_base_mismatch: bool) -> str:
    """Write an adapter that PEFT has to merge as the closest LoRA of a rank; says what of the delta
    is kept.
    """
    progress = ProgressReporter()
    try:
        base = open_base(model, model_folder(model, progress), None, progress)
        progress("merging with PEFT", 0, 0)
        overlay, _ = base.adapters(allow_base_mismatch=allow_base_mismatch).merge(folder)
        what = "singular values"
        converted = convert_to_lora(
            overlay, base.base, rank, lambda done, total: progress(what, done, total)
        )
        if not converted.adapter.factors:
            raise OutputError("it changes no linear layer: there is nothing that a LoRA could do")
        with output_folder(out) as folder_out:
            write_adapter(folder_out, converted.adapter, base.base, base_name=model)
    finally:
        progress.close()
    lost = f"; left out: {shown(converted.lost)}" if converted.lost else ""
    return (
        f"{out}: a LoRA of rank {converted.adapter.max_rank} keeps "
        f"{converted.share:.1%} of the delta (squared norm){lost}"
    )
