"""Parameters that the methods on task vectors (deltas) share, with one meaning in all of them."""

from collections.abc import Sequence
from typing import Annotated, Literal

from merging.methods.parameter import Doc

Semantics = Literal["mergekit", "peft", "paper"]
Scope = Literal["tensor", "model"]
RescaleNorm = Literal["auto", "l1", "l2", "linf", "inv_density"]

WeightOfDelta = Annotated[
    Sequence[float], Doc("Factor on the source's delta; negative negates it.")
]
Density = Annotated[
    Sequence[float], Doc("Share of the delta's elements that is kept.", 0.0, 1.0, default=1.0)
]
Gamma = Annotated[
    Sequence[float], Doc("Share of the largest elements to drop.", 0.0, 1.0, default=0.01)
]
Epsilon = Annotated[
    Sequence[float],
    Doc("How far keep probabilities differ from density.", 0.0, 1.0, default=0.15),
]
UnusedDensity = Annotated[
    Sequence[float],
    Doc("No effect here: every delta is kept whole.", 0.0, 1.0, default=1.0, inert=True),
]
Normalize = Annotated[bool, Doc("Divide the sum of deltas by the sum of weights.")]
NormalizeAgreeing = Annotated[
    bool, Doc("Divide each element's sum by the weights of the sources that are in it.")
]
Lambda = Annotated[float, Doc("Factor on the sum of all deltas.")]
Rescale = Annotated[bool, Doc("Scale each delta after elements were dropped, to make up for them.")]
UnusedRescale = Annotated[bool, Doc("No effect here: no element is dropped.", inert=True)]
RescaleNormOf = Annotated[
    RescaleNorm,
    Doc(
        "How rescale finds its factor: the norm of the tensor's delta stays what it was (l1, l2, "
        "linf), or 1 / density (inv_density). auto: l1, and in DARE under semantics peft and "
        "paper inv_density."
    ),
]
Int8Mask = Annotated[bool, Doc("No effect here: masks never take more.", inert=True)]
SemanticsOfTies = Annotated[
    Semantics,
    Doc(
        "Whose TIES: mergekit elects signs by the weighted deltas and divides by weights; peft "
        "elects by the unweighted deltas and divides by the number of agreeing sources, whatever "
        "normalize says; paper is peft, but keeps all elements equal to the smallest one kept."
    ),
]
SemanticsOfDare = Annotated[
    Semantics,
    Doc("Whose DARE: mergekit rescales to the delta's L1 norm, peft and paper by 1 / density."),
]
SemanticsOfDareTies = Annotated[
    Semantics,
    Doc(
        "Whose DARE and TIES: mergekit rescales to the delta's L1 norm, elects signs by the "
        "weighted deltas and divides by weights; peft and paper rescale by 1 / density, elect by "
        "the unweighted deltas and divide by the number of agreeing sources, whatever normalize "
        "says."
    ),
]
ScopeOfTrim = Annotated[
    Scope,
    Doc(
        "What density is a share of: every tensor by itself, or all tensors of the source "
        "together, so that tensors that changed more keep more."
    ),
]
