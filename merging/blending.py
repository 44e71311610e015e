"""Compile a recipe of adapters to coefficients per (adapter, linear layer), where that is exact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from merging.adapter import Adapter
from merging.blend import Blend
from merging.errors import PlanError
from merging.layout import Layout
from merging.methods.combination import Coefficient, Combination
from merging.methods.method import Method
from merging.models import Models, distinct
from merging.recipe import BASE
from merging.resolution import Resolved
from merging.section import Section
from merging.wording import shown

Array = npt.NDArray[np.float64]
Value = float | Array
"""Of some modules: one number for all, or float64 [num_modules]."""

Gram = Callable[[Sequence[Adapter], str, torch.Tensor], torch.Tensor]
"""Inner products of W0 ([out, in]) and the deltas of adapters on a module: float64 [N+1, N+1]."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """What linear layers are made of: `scales * W0 + sum_i rows[i] * tau_i`.

    `rows`: float64 [num_modules] by model name, columns in the order of `Base.linears`; that of the
    base is its share among the sources, of a delta that is zero. `scales`: float64 [num_modules].
    """

    rows: Mapping[str, Array]
    scales: Array


def combine(
    method: Method, layout: Layout, tensors: Sequence[Resolved], models: Models, gram: Gram
) -> Coefficients:
    """Combine the models for every linear layer, by a method that is linear or geometric.

    The layout must be plain. Raises PlanError with every combination that has no result, by module.
    """
    resolved = {place.name: own for place, own in zip(layout.places, tensors, strict=True)}
    names = sorted({name for own in tensors for name in _models(own.section)})
    combining = _Combining(method, models, gram, names)
    touched = {module for adapter in models.adapters.values() for module in adapter.factors}
    alike: dict[tuple[int, bool], tuple[Resolved, list[str]]] = {}
    for module in models.base.linears:
        own = resolved[f"{module}.weight"]
        key = (id(own), method.kind == "geometric" and module in touched)
        alike.setdefault(key, (own, []))[1].append(module)
    for (_, needs_gram), (own, modules) in alike.items():
        combining.add(own, modules, needs_gram)
    return combining.result()


class _Combining:
    """Coefficients in the making, for groups of modules whose parameters are the same."""

    def __init__(self, method: Method, models: Models, gram: Gram, names: Sequence[str]) -> None:
        self.method, self.models, self.gram, self.names = method, models, gram, names
        num_modules = len(models.base.linears)
        self.rows = {name: np.zeros(num_modules) for name in names}
        self.scales = np.ones(num_modules)
        self.problems: dict[str, list[str]] = {}

    def add(self, own: Resolved, modules: Sequence[str], needs_gram: bool) -> None:
        """Combine some modules at once; one by one if some of them have no result."""
        try:
            scale, coefficients = self._combine(own, modules, needs_gram)
        except PlanError as error:
            if needs_gram and len(modules) > 1:
                for module in modules:
                    self.add(own, [module], needs_gram)
            else:
                for reason in error.reasons:
                    self.problems.setdefault(reason, []).extend(modules)
            return
        columns = [self.models.base.module_index[module] for module in modules]
        self.scales[columns] = scale
        for name, value in coefficients.items():
            self.rows[name][columns] = value

    def result(self) -> Coefficients:
        """Raises PlanError with all problems."""
        reasons = [f"{reason} ({shown(modules)})" for reason, modules in self.problems.items()]
        for name, row in {**self.rows, "": self.scales}.items():
            bad = np.flatnonzero(~(abs(row) <= FLOAT32_MAX))
            if bad.size:
                what = f"sources.{name}: its coefficient" if name else "the factor on the base"
                where = shown([list(self.models.base.linears)[column] for column in bad])
                reasons.append(f"{what}, {row[bad[0]]:g}, is not a finite float32 ({where})")
        if reasons:
            raise PlanError(reasons)
        return Coefficients(self.rows, self.scales)

    def _combine(
        self, own: Resolved, modules: Sequence[str], needs_gram: bool
    ) -> tuple[Value, Mapping[str, Value]]:
        """The factors on W0 and on the models' deltas: a number, or one for each module."""
        section, method = own.section, self.method
        if method.kind == "linear":
            combination = method.combine(own.values)
        elif needs_gram:
            combination = self._combine_grams(own, self._grams(modules, section))
        else:  # the base's own weight, whatever the model
            return untouched_scale(method, own), {}
        scale = _value(combination.base_scale)
        values = [_value(coefficient) for coefficient in combination.coefficients]
        coefficients = dict(zip(section.sources, values, strict=True))
        if section.base_model not in (None, BASE):  # base_scale * x_base + sum c_i (x_i - x_base)
            total = np.sort(np.array(values), axis=0).sum(axis=0)
            coefficients[str(section.base_model)] = scale - total
        return scale, coefficients

    def _combine_grams(self, own: Resolved, grams: torch.Tensor) -> Combination:
        """Combine modules of these Gram matrices, [num_modules, num_sources + 1, ...]."""
        method, whole = self.method, own.section.base_model is None
        if method.batched:
            return method.combine_gram(grams, own.values, whole=whole)
        each = [method.combine_gram(gram, own.values, whole=whole) for gram in grams]
        shares = np.array([[float(c) for c in one.coefficients] for one in each])
        scales = torch.tensor([float(one.base_scale) for one in each], dtype=torch.float64)
        return Combination(tuple(torch.from_numpy(shares.T)), scales)

    def _grams(self, modules: Sequence[str], section: Section) -> torch.Tensor:
        """Inner products of the base_model (of W0 if there is none) and what sources add to it."""
        models = self.models
        assert models.resident is not None, "the base's files are not mapped"
        used = _models(section)
        adapters = distinct([models.adapters[name] for name in used if name in models.adapters])
        found = []
        for module in modules:
            name = f"{module}.weight"
            weight = models.resident.tensor(models.tied.get(name, name))
            transposed = models.base.linears[module].transposed
            found.append(self.gram(adapters, module, weight.T if transposed else weight))
        mixed = _mixed(section, models, [adapter.digest for adapter in adapters])
        return mixed @ torch.stack(found) @ mixed.T


def _mixed(section: Section, models: Models, digests: Sequence[str]) -> torch.Tensor:
    """The base_model and the sources relative to it as sums of W0 and the deltas of adapters:
    float64 [num_sources + 1, num_adapters + 1].
    """
    place = {digest: index for index, digest in enumerate(digests, start=1)}
    mixed = torch.zeros(len(section.sources) + 1, len(digests) + 1, dtype=torch.float64)
    mixed[0, 0] = 1.0
    for row, name in enumerate(section.sources, start=1):
        if name in models.adapters:
            mixed[row, place[models.adapters[name].digest]] = 1.0
    if section.base_model is not None and section.base_model in models.adapters:
        own = place[models.adapters[section.base_model].digest]
        mixed[0, own] += 1.0
        mixed[1:, own] -= 1.0
    return mixed


def _value(coefficient: Coefficient) -> Value:
    return coefficient.numpy() if isinstance(coefficient, torch.Tensor) else coefficient


def untouched_scale(method: Method, own: Resolved) -> float:
    """What is left of a tensor of the base that all models share: the factor on it.

    It is 1 where there is a base_model: all deltas are zero.
    """
    if own.section.base_model is not None or not own.section.sources:
        return 1.0
    return _scale(method, own)


def _scale(method: Method, own: Resolved) -> float:
    if method.kind == "linear":
        return float(method.combine(own.values).base_scale)
    num_sources = len(own.section.sources)
    gram = torch.zeros(num_sources + 1, num_sources + 1, dtype=torch.float64)
    gram[0, 0] = 1.0
    return float(method.combine_gram(gram, own.values, whole=True).base_scale)


def _models(section: Section) -> tuple[str, ...]:
    """The models with a row: sources, and an adapter that others are relative to."""
    base_model = section.base_model
    return section.sources if base_model in (None, BASE) else (*section.sources, str(base_model))


def make_blend(digest: str, combined: Coefficients, models: Models) -> Blend:
    """Add up the names of one content, and leave out the adapters that come to nothing.

    Raises PlanError if a sum is beyond float32.
    """
    by_digest: dict[str, list[str]] = {}
    for name in combined.rows:
        if name in models.adapters:
            by_digest.setdefault(models.adapters[name].digest, []).append(name)
    active, totals = [], []
    for _, names in sorted(by_digest.items()):
        # Sorted, so that the rounding of the sum does not depend on names.
        total = np.sort([combined.rows[name] for name in names], axis=0).sum(axis=0)
        if not (abs(total) <= FLOAT32_MAX).all():
            raise PlanError(
                f"sources {' and '.join(names)} have the same content, and the sum of their "
                "coefficients is not a finite float32"
            )
        adapter = models.adapters[names[0]]
        if total[[models.base.module_index[module] for module in adapter.factors]].any():
            active.append(adapter)
            totals.append(total)
    shape = (len(active), len(models.base.linears))
    coefficients = torch.from_numpy(np.array(totals, dtype=np.float64).reshape(shape))
    scales = torch.from_numpy(combined.scales).to(torch.float32)
    return Blend(
        digest,
        tuple(active),
        coefficients.to(torch.float32),
        None if bool((scales == 1).all()) else scales,
    )
