"""A merge method: a pure function, and the schema of its parameters, read from its signature.

A base `W0` and the deltas `tau_i = x_i - W0` of N sources are merged tensor by tensor. There are
four kinds of methods, by what the function is given and what it returns:

    linear       function(*parameters) -> Combination
    geometric    function(gram, *parameters) -> Combination
    elementwise  function(base, deltas, *parameters) -> what is added to the base's tensor
    low_rank     function(factors, seed, digests, tensor_name, *parameters) -> LowRank, added too;
                 it is also given `bases` if it has such an argument

Without a base `W0` is zero and the deltas are the sources' tensors.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import torch
from pydantic import JsonValue

from merging.adapter import LowRank
from merging.methods.combination import Combination, merge_base, whole_gram
from merging.methods.core_basis import Bases, new_basis
from merging.methods.parameter import Parameter, parameters_of
from merging.methods.trim import Trim
from merging.setting import Scalar

Kind = Literal["linear", "geometric", "elementwise", "low_rank"]
BasePolicy = Literal["required", "optional", "input"]
Vectors = Literal["all", "rows", "columns"]
T = TypeVar("T")
Merged = Combination | torch.Tensor | LowRank
Values = Mapping[str, Scalar | tuple[Scalar, ...]]
"""The parameters of one tensor by name: a scalar for the recipe's, a tuple for the sources'."""

GIVEN: Final[Mapping[Kind, tuple[str, ...]]] = {
    "linear": (),
    "geometric": ("gram",),
    "elementwise": ("base", "deltas"),
    "low_rank": ("factors", "bases", "seed", "digests", "tensor_name"),
}
"""The arguments of a method's function that are not parameters."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    `base`: "required"; "optional" (without one the method works on whole tensors); or "input" (it
    knows no base, and takes one as one more source, of delta zero). `min_sources` and `max_sources`
    count the sources beside the base. `pointwise`: an elementwise method that gives the same for
    any slice of the flattened tensors. `batched`: a geometric method that takes the Gram matrices
    of any number of vectors at once. `trim`: an elementwise method masks each delta by it first.
    """

    name: str
    title: str
    paper: str
    description: str
    kind: Kind
    base: BasePolicy
    min_sources: int
    max_sources: int | None
    is_random: bool
    pointwise: bool
    batched: bool
    parameters: tuple[Parameter, ...]
    function: Callable[..., Merged]
    trim: Trim | None
    checker: Callable[..., None] | None
    chooser: Callable[..., Vectors] | None

    @property
    def takes_base(self) -> bool:
        """Whether the base may be one of its sources."""
        return self.base == "input"

    @property
    def in_pieces(self) -> bool:
        """Whether tensors can be merged piece by piece."""
        return self.kind != "elementwise" or self.pointwise

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    def check(self, values: Values) -> None:
        """Raise PlanError if these values have no result, whatever the tensors."""
        if self.kind == "linear":
            self.combine(values)
        elif self.checker is not None:
            _call(self.checker, self._arguments(values))

    def vectors(self, values: Values) -> Vectors:
        """The vectors that a geometric method combines: the whole flattened tensor, the rows (along
        the last dimension), or the columns (along the first). A 1-d tensor is one row or column.
        """
        return "all" if self.chooser is None else _call(self.chooser, self._arguments(values))

    def combine(self, values: Values) -> Combination:
        """Combine one tensor by a linear method. Raises PlanError if the values have no result."""
        assert self.kind == "linear", f"{self.name} is not linear"
        combination = self.function(**self._arguments(values))
        assert isinstance(combination, Combination)
        return combination

    def combine_gram(
        self, gram: torch.Tensor, values: Values, *, whole: bool = False
    ) -> Combination:
        """Combine vectors by a geometric method.

        `gram`: float64 [..., N+1, N+1], inner products of W0 (entry 0; zeros without a base) and
        the deltas; leading dimensions count vectors, and then the Combination holds float64 tensors
        of them. `whole`: the method has no base here and works on the whole vectors `W0 + tau_i`;
        the Combination is of W0 and the deltas all the same.

        Raises PlanError if the values have no result.
        """
        assert self.kind == "geometric", f"{self.name} is not geometric"
        seen = whole_gram(gram) if whole else gram
        combination = self.function(seen, **self._arguments(values))
        assert isinstance(combination, Combination)
        return merge_base(combination) if whole else combination

    def merge_deltas(
        self, base: torch.Tensor, deltas: tuple[torch.Tensor, ...], values: Values
    ) -> torch.Tensor:
        """What an elementwise method adds to the base: float32, in the shape of `base`.

        All are float32 of one shape; the deltas are already trimmed, and may be written over.
        """
        assert self.kind == "elementwise", f"{self.name} is not elementwise"
        merged = self.function(base, deltas, **self._arguments(values))
        assert isinstance(merged, torch.Tensor)
        return merged

    def merge_factors(
        self,
        factors: Sequence[LowRank],
        values: Values,
        *,
        seed: int,
        digests: Sequence[str],
        tensor_name: str,
        bases: Bases = new_basis,
    ) -> LowRank:
        """What a low-rank method adds to the base's tensor `tensor_name`, as factors.

        `factors`: those of the adapters that touch the module, in their own dtype; `digests` are
        the adapters', and `values` theirs alone, in the same order, which does not matter. `bases`
        may keep what depends on the factors alone.
        """
        assert self.kind == "low_rank", f"{self.name} is not low_rank"
        keys = {"seed": seed, "digests": digests, "tensor_name": tensor_name}
        if "bases" in inspect.signature(self.function).parameters:
            keys["bases"] = bases
        merged = self.function(factors=factors, **keys, **self._arguments(values))
        assert isinstance(merged, LowRank)
        return merged

    def trim_values(self, values: Values, source: int) -> dict[str, Scalar]:
        """The arguments of the trim for the source at this index: all that its mask depends on
        beside the delta and the random numbers.
        """
        names = self.trim.parameters if self.trim is not None else ()
        given = {name: values[name] for name in names}
        return {n: v[source] if isinstance(v, tuple) else v for n, v in given.items()}

    def describe(self) -> dict[str, JsonValue]:
        """The method and its parameters as plain JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "description": self.description,
            "kind": self.kind,
            "base": self.base,
            "takes_base": self.takes_base,
            "min_sources": self.min_sources,
            "max_sources": self.max_sources,
            "is_random": self.is_random,
            "parameters": [parameter.describe() for parameter in self.parameters],
        }

    def _arguments(self, values: Values) -> dict[str, Scalar | tuple[Scalar, ...]]:
        return {p.argument: values[p.name] for p in self.parameters}


def method(
    name: str,
    *,
    title: str,
    paper: str,
    kind: Kind = "linear",
    base: BasePolicy = "required",
    min_sources: int = 1,
    max_sources: int | None = None,
    is_random: bool = False,
    pointwise: bool = False,
    batched: bool = False,
    trim: Trim | None = None,
    check: Callable[..., None] | None = None,
    vectors: Callable[..., Vectors] | None = None,
) -> Callable[[Callable[..., Merged]], Method]:
    """Make a Method of a function; its signature declares the parameters (see `parameters_of`).

    `check` and `vectors` (see `Method`) take those of the parameters that they name.
    """

    def decorate(function: Callable[..., Merged]) -> Method:
        description = inspect.getdoc(function)
        assert description, f"{name} has no docstring"
        assert kind != "low_rank" or base == "required", f"{name} has no deltas without a base"
        parameters = parameters_of(function, GIVEN[kind])
        return Method(
            name, title, paper, description, kind, base, min_sources, max_sources, is_random,
            pointwise, batched, parameters, function, trim, check, vectors,
        )  # fmt: skip

    return decorate


def _call(function: Callable[..., T], arguments: Mapping[str, object]) -> T:
    names = inspect.signature(function).parameters
    return function(**{name: arguments[name] for name in names})
