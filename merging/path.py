"""How a recipe is served, and why: as a blend where that is exact, else as written weights."""

from collections.abc import Iterator, Sequence

from merging.blending import untouched_scale
from merging.layout import Layout
from merging.methods.method import Method
from merging.models import Models
from merging.overlay_weights import OverlayWeights
from merging.resolution import Resolved
from merging.wording import shown
from merging.writing import SAME

WRITTEN = "weights are written"


def why_written(
    method: Method, layout: Layout, tensors: Sequence[Resolved], models: Models
) -> str | None:
    """Why a recipe is no blend; None if it is one."""
    return next(_reasons(method, layout, tensors, models), None)


def why_blended(method: Method) -> str:
    """Why a recipe is a blend."""
    if method.kind == "linear":
        return f"{method.name} of adapters is a sum of low-rank deltas: no weights are written"
    if method.kind == "low_rank":
        return f"{method.name} makes one adapter of its sources: no weights are written"
    return (
        f"{method.name} of adapters is a sum of the base and low-rank deltas, with factors from "
        "their inner products: no weights are written"
    )


def _reasons(
    method: Method, layout: Layout, tensors: Sequence[Resolved], models: Models
) -> Iterator[str]:
    if not layout.is_plain:
        yield f"its slices stack layers: {_stacked(layout, models)}"
    if method.kind == "elementwise":
        does = "keeps or drops each element" if method.trim else "works on each element by itself"
        yield f"{method.name} {does}: {WRITTEN}"
    if models.checkpoints:
        yield f"{_whole(models)}: {WRITTEN}"
    distinct = {id(own): own for own in tensors}.values()
    if method.kind == "geometric":
        for vectors in {method.vectors(own.values) for own in distinct} - {"all"}:
            yield f"{method.name} works on {vectors} by themselves here: {WRITTEN}"
    scales = {id(own): untouched_scale(method, own) for own in distinct}
    linears = {f"{module}.weight" for module in models.base.linears}
    for place, own in zip(layout.places, tensors, strict=True):
        scale = scales[id(own)]
        # Without the base's files its other tensors are not known: the linear layers stand for them
        is_outside = place.name not in linears or models.resident is None
        if is_outside and abs(scale - 1) > SAME:
            yield (
                f"{method.name} scales the base itself by {scale:g}, its norms and embeddings too "
                f"({place.name}): {WRITTEN}"
            )
            return


def _whole(models: Models) -> str:
    """The sources that are more than low-rank deltas."""
    dense = [n for n, own in models.checkpoints.items() if isinstance(own, OverlayWeights)]
    full = [name for name in models.checkpoints if name not in dense]
    told = []
    if dense:
        is_one = "source {} has a dense delta" if len(dense) == 1 else "{} have dense deltas"
        told.append(is_one.format(shown(dense)))
    if full:
        is_one = "source {} is a full checkpoint" if len(full) == 1 else "{} are full checkpoints"
        told.append(is_one.format(shown(full)))
    return ", ".join(told)


def _stacked(layout: Layout, models: Models) -> str:
    own = not any(
        models.changes(name, tensor)
        for place in layout.places
        for name, tensor in zip(place.section.sources, place.inputs, strict=True)
    )
    return "those of the base are shared" if own else WRITTEN
