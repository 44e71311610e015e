"""The grid of cases that mergekit and this project must agree on."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from merging.methods import METHODS

BASE = "base"
MODELS = (BASE, "a", "b", "c")
SHAPES: Mapping[str, tuple[int, ...]] = {
    "scalar": (),
    "one": (1,),
    "norm": (24,),
    "linear": (16, 24),
    "narrow": (6, 1),
    "embedding": (300, 16),
}
SETS: Mapping[str, tuple[float, torch.dtype]] = {
    "tuned": (0.02, torch.float32),
    "tuned-bf16": (0.02, torch.bfloat16),
    "unrelated": (1.0, torch.float32),
    "unrelated-bf16": (1.0, torch.bfloat16),
}
"""How far the sources are from the base, and the dtype that all are stored in."""

WEIGHTS = ((0.6, 0.4), (0.5, -0.5), (-0.3, 0.9), (0.7, 0.0), (0.7, -0.2, 0.5))
DENSITIES = (0.0, 0.01, 0.3, 1.0)
SWITCH = (False, True)


@dataclass(frozen=True)
class Case:
    """One tensor to merge. `sources` are beside the base; `parameters` of sources are tuples.

    `dtype`: what mergekit computes in.
    """

    method: str
    set: str
    tensor: str
    sources: tuple[str, ...]
    has_base: bool
    parameters: Mapping[str, object] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def id(self) -> str:
        settings = ",".join(f"{k}={v}" for k, v in self.parameters.items())
        models = "+".join((BASE, *self.sources) if self.has_base else self.sources)
        return f"{self.method}/{self.set}/{self.tensor}/{models}/{settings}/{self.dtype}"

    def json(self) -> dict[str, object]:
        """The case as oracle.py reads it."""
        names = (BASE, *self.sources) if self.has_base else self.sources
        parameters = {
            k: dict(zip(self.sources, v, strict=True)) if isinstance(v, tuple) else v
            for k, v in self.parameters.items()
        }
        if self.method == "linear" and self.has_base:
            parameters["weight"] |= {BASE: 0.25}  # type: ignore[operator]
        return {
            "id": self.id,
            "method": self.method,
            "set": self.set,
            "tensor": self.tensor,
            "models": names,
            "base": BASE if self.has_base else None,
            "parameters": parameters,
            "dtype": self.dtype,
            "seed": 0,
        }


def tensors() -> dict[str, torch.Tensor]:
    """Every tensor of the grid, as oracle.py names them; the same in every run."""
    generator = torch.Generator().manual_seed(17)
    made = {}
    for name, (distance, dtype) in SETS.items():
        for tensor, shape in {**SHAPES, "pooled": (400, 300)}.items():
            base = torch.randn(shape, generator=generator)
            for model in MODELS:
                noise = torch.randn(shape, generator=generator)
                value = base if model == BASE else base + distance * noise
                made[f"{name}/{model}/{tensor}"] = value.to(dtype)
    return made


def cases() -> Iterator[Case]:
    """Every case. Geometric methods are compared to float64: angles in float32 are mostly noise."""
    for method, settings in _settings():
        dtype = "float64" if METHODS[method].kind == "geometric" else "float32"
        for name, tensor in itertools.product(SETS, SHAPES):
            for has_base, count, parameters in settings:
                sources = MODELS[1 : count + 1]
                yield Case(method, name, tensor, sources, has_base, parameters, dtype)


def native_cases() -> Iterator[Case]:
    """Every method once, computed by mergekit in bfloat16 as it does by default. What is random is
    switched off, and Arcee Fusion is asked for far tensors only: in bfloat16 the divergence of near
    ones is all rounding.
    """
    for method, settings in _settings():
        has_base, count, parameters = settings[-1]
        for name in ("tuned-bf16", "unrelated-bf16")[method == "arcee_fusion" :]:
            sources = MODELS[1 : count + 1]
            yield Case(method, name, "embedding", sources, has_base, parameters, "bfloat16")


def pooled_cases() -> Iterator[Case]:
    """Random methods on a tensor that is large enough for statistics."""
    for method, density, w in itertools.product(
        ("dare_linear", "dare_ties", "della", "della_linear"),
        (0.05, 0.3, 0.8),
        ((1.0,), WEIGHTS[0]),
    ):
        extra = {"epsilon": (0.04,) * len(w)} if method.startswith("della") else {}
        for rescale in SWITCH:
            parameters = {"weight": w, "density": (density,) * len(w), "rescale": rescale, **extra}
            yield Case(method, "unrelated", "pooled", MODELS[1 : len(w) + 1], True, parameters)


Settings = Sequence[tuple[bool, int, Mapping[str, object]]]


def _settings() -> Iterator[tuple[str, Settings]]:
    """By method: with a base or not, the number of sources, parameters."""
    yield (
        "linear",
        [
            (has_base, len(w), {"weight": w, "normalize": n})
            for has_base, w, n in itertools.product(SWITCH, WEIGHTS, SWITCH)
            if has_base or sum(w) or not n
        ],
    )
    yield "slerp", [(True, 1, {"t": t}) for t in (0.0, 0.25, 0.5, 1.0, 1.3)]
    yield (
        "nuslerp",
        [
            (has_base, 2, {"weight": w, "nuslerp_flatten": flat, "nuslerp_row_wise": rows})
            for has_base, w, flat, rows in itertools.product(SWITCH, WEIGHTS[:4], SWITCH, SWITCH)
        ],
    )
    yield (
        "multislerp",
        [
            (has_base, len(w), {"weight": w, "normalize_weights": n})
            for has_base, w, n in itertools.product(SWITCH, [*WEIGHTS, (0.4,)], SWITCH)
            if sum(w) or not n
        ],
    )
    yield "karcher", [(has_base, n, {}) for has_base, n in itertools.product(SWITCH, (1, 2, 3))]
    yield "task_arithmetic", list(_task_arithmetic({}))
    yield "ties", list(_trimmed(DENSITIES))
    yield "dare_linear", list(_trimmed((0.0, 1.0)))
    yield "dare_ties", list(_trimmed((0.0, 1.0)))
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        yield (
            name,
            [
                (True, n, {**p, "gamma": (gamma,) * n})
                for gamma in (0.0, 0.01, 0.2)
                for _, n, p in _trimmed(DENSITIES)
            ],
        )
    yield "della", list(_trimmed((0.0, 1.0)))
    yield "della_linear", list(_trimmed((0.0, 1.0)))
    yield "sce", [(True, n, {"select_topk": k}) for n in (1, 2, 3) for k in (0.0, 0.1, 0.5, 1.0)]
    yield "ram", [(True, n, {"epsilon": e}) for n in (1, 2, 3) for e in (1e-5, 0.01, 0.5)]
    yield (
        "ramplus_tl",
        [
            (True, n, {"epsilon": e, "r": r, "alpha": alpha})
            for n in (1, 2, 3)
            for e, r, alpha in ((1e-5, 0.1, 0.2), (0.01, 0.5, 1.0), (0.5, 0.3, 2.0))
        ],
    )
    yield "model_stock", [(True, n, {"filter_wise": f}) for n in (2, 3) for f in SWITCH]
    yield "nearswap", [(True, 1, {"t": t}) for t in (0.0, 1e-4, 0.01, 1.0)]
    yield "arcee_fusion", [(True, 1, {})]
    yield "passthrough", [(False, 1, {}), (False, 1, {"scale": (1.3,)})]


def _task_arithmetic(extra: Mapping[str, object]) -> Iterator[tuple[bool, int, dict[str, object]]]:
    for w, normalize, factor in itertools.product(WEIGHTS, SWITCH, (1.0, 0.5)):
        yield True, len(w), {"weight": w, "normalize": normalize, "lambda": factor, **extra}


def _trimmed(densities: Sequence[float]) -> Iterator[tuple[bool, int, dict[str, object]]]:
    for w, density, normalize in itertools.product(WEIGHTS, densities, SWITCH):
        factor = 0.5 if normalize else 1.0
        both = {"weight": w, "density": (density,) * len(w), "normalize": normalize}
        yield True, len(w), {**both, "lambda": factor, "rescale": normalize}
