"""A trim: what an elementwise method does to each delta by itself before it merges them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from merging.methods.random import Random
from merging.setting import Scalar

Threshold = tuple[float, ...]
"""Magnitudes found over all tensors of a source, one for each of `Trim.counts`."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A trimmed delta is `delta * kept * scale`. `kept`: bool, in the shape of the delta."""

    kept: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Trim:
    """A mask and a scale for one delta; never a function of its weight, so it can be cached.

    `function(delta, *, random, threshold, …)` and `counter(size, …)` name the parameters of the
    method that they depend on.
    """

    function: Callable[..., Trimmed]
    counter: Callable[..., tuple[int, ...]] | None = None

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the method's parameters that the mask depends on."""
        given = ("delta", "random", "threshold")
        return tuple(n for n in inspect.signature(self.function).parameters if n not in given)

    def __call__(
        self,
        delta: torch.Tensor,
        *,
        random: Random,
        threshold: Threshold | None = None,
        **values: Scalar,
    ) -> Trimmed:
        """Trim one delta, float32 of any shape. `values`: by `parameters`, for this source.

        `threshold` must be given if `counts` is not empty.
        """
        return self.function(delta, random=random, threshold=threshold, **values)

    def counts(self, size: int, **values: Scalar) -> tuple[int, ...]:
        """For `scope: model`: the numbers k of which the k-th largest magnitude of all `size`
        elements of the source is needed (infinity if k is 0); `threshold` has them in this order.

        Empty if the trim looks at one tensor only.
        """
        if self.counter is None:
            return ()
        names = inspect.signature(self.counter).parameters
        return self.counter(size, **{name: v for name, v in values.items() if name in names})
