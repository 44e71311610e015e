"""A linear layer whose rows may each see another blend of adapters: `y = W0 x + B (c * (A x))`."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from server.engine.slab import ActiveStack


@dataclass(slots=True)
class StepRows:
    """Which row each token of the step belongs to, [tokens]; None when every row has one token, in order.

    One object is shared by all linears of a runner, which sets it before each forward; the head, which only sees the tokens
    whose logits are wanted, has one of its own.
    """

    row_of_token: torch.Tensor | None = None


class BlendedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or of GPT-2's `Conv1D`, sharing its parameters.

    `active` is this step's stack, or None where no row of the step has a delta here.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, transposed: bool, rows: StepRows
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.transposed = transposed
        self.active: ActiveStack | None = None
        self._rows = rows

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return self.weight.shape[1 if self.transposed else 0]

    @property
    def in_features(self) -> int:
        """Size of the input."""
        return self.weight.shape[0 if self.transposed else 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in] -> [..., out]."""
        weight = self.weight.T if self.transposed else self.weight
        y = linear(x, weight, self.bias)
        return y if self.active is None else self._add_blend(x, y, self.active)

    def _add_blend(self, x: torch.Tensor, y: torch.Tensor, active: ActiveStack) -> torch.Tensor:
        coefficients = active.coefficients
        if self._rows.row_of_token is not None:
            coefficients = coefficients.index_select(0, self._rows.row_of_token)
        inner = torch.mm(x.flatten(0, -2), active.a.T) * coefficients  # float32 [tokens, R]
        return torch.addmm(y.flatten(0, -2), inner.to(x.dtype), active.b).view_as(y)
