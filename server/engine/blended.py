"""A linear layer whose rows may each see another blend of adapters: `y = W0 x + B (c * (A x))`."""

from dataclasses import dataclass

import torch
from torch import nn

from server.engine.kernels import choose_kernel
from server.engine.slab import ActiveStack


@dataclass(slots=True)
class StepRows:
    """Which row each token of the step belongs to, [tokens]; None when every row has one token, in
    order.

    One object is shared by all linears of a runner, which sets it before each forward; the head,
    which only sees the tokens whose logits are wanted, has one of its own.
    """

    row_of_token: torch.Tensor | None = None


class BlendedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or of GPT-2's `Conv1D`. Its base product is a kernel's,
    which owns the weight.

    `active` is this step's stack, or None where no row of the step has a delta here.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: StepRows) -> None:
        """`weight`: [out, in]."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.active: ActiveStack | None = None
        self._kernel = choose_kernel(weight.detach(), None if bias is None else bias.detach())
        self._rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in] -> [..., out]."""
        tokens = x.flatten(0, -2)
        y = self._kernel(tokens)
        if self.active is not None:
            y = self._add_blend(tokens, y, self.active)
        return y.view(*x.shape[:-1], self.out_features)

    def _add_blend(self, x: torch.Tensor, y: torch.Tensor, active: ActiveStack) -> torch.Tensor:
        """`x`: [tokens, in]; `y`: [tokens, out]."""
        coefficients = active.coefficients
        if self._rows.row_of_token is not None:
            coefficients = coefficients.index_select(0, self._rows.row_of_token)
        inner = torch.mm(x, active.a.T) * coefficients  # float32 [tokens, R]
        return y.addmm_(inner.to(x.dtype), active.b)
