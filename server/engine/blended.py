"""A linear layer whose rows may each see another blend of adapters: `y = W0 x + B (c * (A x))`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from server.engine.kernels import choose_kernel
from server.engine.slab import ActiveStack


@dataclass(slots=True)
class Step:
    """What a step tells the linears of one model; the runner sets it before each forward.

    `stacks`: by module index, where some row has a delta. `row_of_token` [tokens] says which row
    each token belongs to, None when every row has one token, in order; `row_of_logit` says the same
    of the tokens that reach the head.
    """

    stacks: Mapping[int, ActiveStack] = field(default_factory=dict)
    row_of_token: torch.Tensor | None = None
    row_of_logit: torch.Tensor | None = None


class BlendedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or of GPT-2's `Conv1D`.

    Its base product is a kernel's, which owns the weight.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        index: int,
        is_head: bool,
        step: Step,
    ) -> None:
        """`weight`: [out, in]. `index` is the module's column in a blend's coefficients."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._kernel = choose_kernel(weight.detach(), None if bias is None else bias.detach())
        self._index = index
        self._is_head = is_head
        self._step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in] -> [..., out]."""
        y = self._kernel(x)
        active = self._step.stacks.get(self._index)
        return y if active is None else self._add_blend(x, y, active)

    def _add_blend(self, x: torch.Tensor, y: torch.Tensor, active: ActiveStack) -> torch.Tensor:
        rows = self._step.row_of_logit if self._is_head else self._step.row_of_token
        coefficients, unused = active.coefficients, active.unused
        if rows is not None:
            coefficients = coefficients.index_select(0, rows)
            unused = unused.index_select(0, rows)
        inner = torch.mm(x.flatten(0, -2), active.a.T) * coefficients  # float32 [tokens, R]
        inner.masked_fill_(unused, 0)  # another row's adapter may overflow, and 0 x inf is NaN
        return torch.addmm(y.flatten(0, -2), inner.to(x.dtype), active.b).view_as(y)
