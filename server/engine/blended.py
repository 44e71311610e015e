"""Linear layers whose rows may each see another blend of adapters: `y = W0 x + B (c * (A x))`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from server.engine.kernels import choose_kernel
from server.engine.slab import ActiveStack


@dataclass(slots=True)
class Step:
    """What a step tells the linears of one model; the runner sets it before each forward.

    `stacks`: by the number of the siblings, where some row has a delta. `row_of_token` [tokens]
    says which row each token belongs to, None when every row has one token, in order;
    `row_of_logit` says the same of the tokens that reach the head.
    """

    stacks: Mapping[int, ActiveStack] = field(default_factory=dict)
    row_of_token: torch.Tensor | None = None
    row_of_logit: torch.Tensor | None = None


class Siblings:
    """Linears that read the same input, as q, k and v do: one product of their stacked weights
    serves all, and one of their adapters' stacked `A`.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        *,
        number: int,
        has_head: bool,
        step: Step,
    ) -> None:
        """`weights`: [out, in] of each linear, whose kernel owns them from now on."""
        self._sizes = [len(weight) for weight in weights]
        self._kernel = choose_kernel(_joined_weight(weights), _joined_bias(weights, biases))
        self._number = number
        self._has_head = has_head
        self._step = step
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def output(self, position: int, x: torch.Tensor) -> torch.Tensor:
        """What the linear at `position` gives for `x` [..., in]: [..., out].

        The first to be called computes for all. Each result is handed out once: a tensor that comes
        again may have been written to. (A model that writes to it between two siblings would give
        other logits than its own, and the probe refuses it.)
        """
        if x is not self._input or position not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(self._compute(x)))
        y = self._outputs.pop(position)
        if not self._outputs:
            self._input = None
        return y

    def _compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(self._kernel(x), self._sizes, dim=-1)
        active = self._step.stacks.get(self._number)
        if active is not None:
            inner = torch.split(self._inner(x, active), [len(b) for b in active.b], dim=-1)
            parts = tuple(
                torch.addmm(y.flatten(0, -2), c, b).view(y.shape) if len(b) else y
                for y, c, b in zip(parts, inner, active.b, strict=True)
            )
        return [part.contiguous() for part in parts]

    def _inner(self, x: torch.Tensor, active: ActiveStack) -> torch.Tensor:
        """`c * (A x)` of every token, [tokens, R]."""
        rows = self._step.row_of_logit if self._has_head else self._step.row_of_token
        coefficients, unused = active.coefficients, active.unused
        if rows is not None:
            coefficients = coefficients.index_select(0, rows)
            unused = unused.index_select(0, rows)
        inner = torch.mm(x.flatten(0, -2), active.a.T) * coefficients  # float32
        inner.masked_fill_(unused, 0)  # another row's adapter may overflow, and 0 x inf is NaN
        return inner.to(x.dtype)


def _joined_weight(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])


def _joined_bias(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    if all(bias is None for bias in biases):
        return None
    parts = zip(weights, biases, strict=True)
    return torch.cat([w.new_zeros(len(w)) if b is None else b.detach() for w, b in parts])


class BlendedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or of GPT-2's `Conv1D`: one of `siblings`."""

    def __init__(self, shape: Sequence[int], siblings: Siblings, position: int) -> None:
        """`shape`: (out_features, in_features)."""
        super().__init__()
        self.out_features, self.in_features = shape
        self._siblings, self._position = siblings, position

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in] -> [..., out]."""
        return self._siblings.output(self._position, x)
