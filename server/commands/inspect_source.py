"""What a folder is against a base."""

from dataclasses import replace
from pathlib import Path

from merging.checkpoint import checkpoint_digest
from merging.checkpoint_fit import under_model_names
from merging.checkpoint_weights import open_checkpoint
from server.engine.loading import describe_base
from server.engine.model_files import model_folder
from server.inspection import inspect_folder, records_base


def inspect_against(folder: Path, model: str, *, allow_base_mismatch: bool) -> str:
    """The report. Of the base only the config is read, unless its content decides."""
    base_folder = model_folder(model, lambda what, done, total: None)
    base = describe_base(model)
    if records_base(folder):
        base = replace(base, digest=checkpoint_digest(base_folder))
    return inspect_folder(
        folder,
        base,
        resident=lambda: under_model_names(open_checkpoint(base_folder), base),
        allow_base_mismatch=allow_base_mismatch,
    )
