"""Reads adapters: as low-rank factors where that is what they are, else as PEFT merges them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from merging.adapter import Adapter, BaseTensor, check_adapter, check_recorded, read_adapter
from merging.adapter_fit import under_model_names
from merging.adapter_weights import AdapterWeights
from merging.base import Base
from merging.checkpoint_weights import CheckpointWeights
from merging.dense_adapter import DenseAdapter, read_dense_adapter
from merging.errors import DenseDeltaError, SourceError
from merging.models import Models
from merging.overlay_weights import OverlayWeights
from merging.safetensors_file import SafetensorsFile, TensorSpec
from merging.source import Weights
from merging.stacked_adapter import stack_adapters, stacked_digest
from server.adapters.dense_cache import DenseCache
from server.adapters.process import merge_apart
from server.adapters.request import MergeAnswer, MergeRequest

Content = Adapter | CheckpointWeights | OverlayWeights
"""What a source holds: low-rank factors, the tensors of a full model, or a dense delta."""


class AdapterReader:
    """Reads adapters for a base, each checked against it.

    `resident` are the base's own files, on which PEFT merges, and `cache` keeps what it makes;
    without them only low-rank deltas can be read. `base_tensor`: see `check_adapter`. `make_room`
    lets go of deltas that are held for nothing, before another one is made.
    """

    def __init__(
        self,
        base: Base,
        *,
        resident: CheckpointWeights | None = None,
        cache: DenseCache | None = None,
        base_tensor: BaseTensor | None = None,
        allow_base_mismatch: bool = False,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._base, self._resident, self._cache = base, resident, cache
        self._make_room = make_room
        self._base_tensor, self._allow_base_mismatch = base_tensor, allow_base_mismatch

    def read(self, folder: Path, parent: Content | None) -> tuple[Content, list[str]]:
        """The delta of an adapter to the base, that of its `parent` included, and warnings.

        May take as long as PEFT does to merge it. Raises SourceError with every reason why it
        cannot be used.
        """
        found, warnings = self._describe(folder, parent)
        if isinstance(found, DenseAdapter):
            return self._merge(found, parent), warnings
        return (stack_adapters(parent, found) if isinstance(parent, Adapter) else found), warnings

    def merge(self, folder: Path) -> tuple[OverlayWeights, list[str]]:
        """An adapter as PEFT merges it, also where its factors could be had; and warnings."""
        found, warnings = self._describe(folder, None)
        if isinstance(found, Adapter):
            found = read_dense_adapter(folder, ("it was asked for",))
        return self._merge(found, None), warnings

    def digest(self, folder: Path, parent: Content | None) -> str:
        """The digest that `read` would give, without merging anything."""
        found, _ = self._describe(folder, parent)
        if isinstance(found, DenseAdapter):
            return self._dense_digest(found, parent)
        return found.digest if parent is None else stacked_digest(parent.digest, found.digest)

    def _describe(
        self, folder: Path, parent: Content | None
    ) -> tuple[Adapter | DenseAdapter, list[str]]:
        reasons: tuple[str, ...] = ()
        try:
            adapter = under_model_names(read_adapter(folder), self._base)
            warnings = check_adapter(
                adapter,
                self._base,
                allow_base_mismatch=self._allow_base_mismatch,
                base_tensor=self._base_tensor,
            )
            if parent is None or isinstance(parent, Adapter):
                return adapter, warnings
            reasons = ("its parent is no low-rank delta",)
        except DenseDeltaError as error:
            reasons = error.reasons
        dense = read_dense_adapter(folder, reasons)
        return dense, check_recorded(dense, self._base, self._allow_base_mismatch)

    def _dense_digest(self, adapter: DenseAdapter, parent: Content | None) -> str:
        return adapter.digest_on(self._base.digest if parent is None else parent.digest)

    def _merge(self, adapter: DenseAdapter, parent: Content | None) -> OverlayWeights:
        if self._resident is None or self._cache is None:
            raise SourceError(
                f"{'; '.join(adapter.reasons)}: PEFT has to merge it, and the base's files are not "
                "at hand"
            )
        digest = self._dense_digest(adapter, parent)
        overlay = self._cache.in_use(digest)
        if overlay is None or overlay.path != adapter.path:
            delta = self._cache.get(digest, partial(self._run, adapter, parent), self._make_room)
            overlay = OverlayWeights(
                digest=digest,
                own=delta.tensors,
                resident=self._resident,
                path=adapter.path,
                reasons=adapter.reasons,
                seconds=delta.seconds,
                base_name=adapter.base_name,
                base_digest=adapter.base_digest,
            )
            self._cache.note_use(overlay)
        return overlay

    def _run(
        self, adapter: DenseAdapter, parent: Content | None, out: Path, max_bytes: int
    ) -> MergeAnswer:
        """Merge an adapter onto the base, or onto its parent."""
        assert self._resident is not None, "PEFT merges onto the base's files"
        base = str(self._resident.folder.absolute())
        with TemporaryDirectory(dir=out.parent) as folder:
            start = None if parent is None else Path(folder) / "start.safetensors"
            if parent is not None and start is not None:
                _write(self._changed(parent), start)
            answer = merge_apart(
                MergeRequest(
                    base=base,
                    adapter=str(adapter.path.absolute()),
                    start=None if start is None else str(start),
                    out=str(out),
                    max_bytes=max_bytes,
                )
            )
        if read_dense_adapter(adapter.path, adapter.reasons).content != adapter.content:
            raise SourceError(f"{adapter.path} changed while it was merged: try again")
        return answer

    def _changed(self, parent: Content) -> tuple[Weights, Mapping[str, tuple[int, ...]]]:
        """The parent as a whole model, and the tensors that it may have other than the base."""
        assert self._resident is not None, "PEFT merges onto the base's files"
        if isinstance(parent, OverlayWeights):
            return parent, parent.own.shapes
        if isinstance(parent, CheckpointWeights):
            if parent.vocabulary is not None:
                raise SourceError("its parent has another vocabulary than the base")
            return parent, parent.shapes
        tied = Models(self._base, self._resident, {}).tied
        whole = AdapterWeights(parent, self._base, self._resident, tied)
        names = [f"{module}.weight" for module in parent.factors]
        return whole, {name: whole.shapes[name] for name in names}


def _write(changed: tuple[Weights, Mapping[str, tuple[int, ...]]], path: Path) -> None:
    weights, shapes = changed
    file = SafetensorsFile(path, [TensorSpec(n, torch.float32, s) for n, s in shapes.items()])
    for name in shapes:
        file.tensor(name).copy_(weights.tensor(name))
    file.flush()
