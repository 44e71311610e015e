"""Linear layers whose rows may each see another blend: `y = s (W0 x) + b + B (c * (A x))`, where
the scale `s` of the base is 1 but for a few methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from server.engine.kernels import Kernel, PlainKernel, choose_kernel
from server.engine.slab import ActiveStack

if TYPE_CHECKING:
    from server.engine.batch import Batch


@dataclass(slots=True)
class Step:
    """What a step tells the linears and the attention of one model; the runner sets it before each
    forward.

    `stacks`: by the number of the siblings, where some row has a delta. `scales`: likewise,
    float32 [rows, linears], where some row has a scale other than 1. `row_of_token` [tokens] says
    which row each token belongs to, None when every row has one token, in order, and [1] is the row
    of all; `row_of_logit` says the same of the tokens that reach the head. `batch`: the packed
    step, for attention.
    """

    stacks: Mapping[int, ActiveStack] = field(default_factory=dict)
    scales: Mapping[int, torch.Tensor] = field(default_factory=dict)
    row_of_token: torch.Tensor | None = None
    row_of_logit: torch.Tensor | None = None
    batch: "Batch | None" = None


class Siblings:
    """Linears that read the same input, as q, k and v do: one product of their stacked weights
    serves all, and one of their adapters' stacked `A`.
    """

    def __init__(
        self,
        kernel: Kernel,
        bias: torch.Tensor | None,
        sizes: Sequence[int],
        *,
        number: int,
        has_head: bool,
        step: Step,
    ) -> None:
        """`kernel`: of the stacked weight; `bias`: stacked likewise, 0 where a linear has none;
        `sizes`: out_features of each.
        """
        self.kernel, self.bias, self.sizes = kernel, bias, list(sizes)
        self.has_head = has_head
        self._number = number
        self._step = step
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def like(
        self, number: int, step: Step, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> "Siblings":
        """The same linears in another model, with a stacked weight or bias of their own where one
        is given; the rest is shared.
        """
        return Siblings(
            self.kernel if weight is None else PlainKernel(weight),
            self.bias if bias is None else bias,
            self.sizes,
            number=number,
            has_head=self.has_head,
            step=step,
        )

    def pack(self) -> None:
        """Take the fastest kernel in place of the plain one, whose weight is let go. The model may
        be running on another thread.
        """
        if isinstance(self.kernel, PlainKernel):
            self.kernel = choose_kernel(self.kernel.weight)

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

    def weight(self, position: int) -> torch.Tensor:
        """The weight of the linear at `position`, [out, in], for models that read it themselves.
        Raises `RuntimeError` while rows see other ones.
        """
        if self._number in self._step.stacks or self._number in self._step.scales:
            raise RuntimeError("the model reads a weight itself, so no adapter can be on it")
        return torch.split(self.kernel.weight, self.sizes)[position]

    def _compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(self.kernel(x, self.bias), self.sizes, dim=-1)
        scales = self._step.scales.get(self._number)
        if scales is not None:
            parts = self._scaled(parts, self._by_token(scales))
        active = self._step.stacks.get(self._number)
        if active is not None:
            stack = active.stack
            inner = torch.split(self._inner(x, active), stack.ranks, dim=-1)
            parts = tuple(
                y if up is None else y + up(c, None).view(y.shape)
                for y, c, up in zip(parts, inner, stack.up, strict=True)
            )
        return [part.contiguous() for part in parts]

    def _scaled(
        self, parts: Sequence[torch.Tensor], scales: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`s (W0 x) + b` from `W0 x + b`, in float32; `scales` [tokens, linears]. A row whose
        scale is 1 keeps its numbers.
        """
        scaled = [
            y.flatten(0, -2) * scale[:, None] for y, scale in zip(parts, scales.T, strict=True)
        ]
        if self.bias is not None:
            biases = torch.split(self.bias, self.sizes)
            for y, bias, scale in zip(scaled, biases, scales.T, strict=True):
                y += (1 - scale[:, None]) * bias
        return tuple(
            y.to(part.dtype).view(part.shape) for y, part in zip(scaled, parts, strict=True)
        )

    def _inner(self, x: torch.Tensor, active: ActiveStack) -> torch.Tensor:
        """`c * (A x)` of every token, [tokens, R]."""
        coefficients = self._by_token(active.coefficients)
        inner = active.stack.down(x.flatten(0, -2), None) * coefficients  # float32
        # another row's adapter may overflow, and 0 x inf is NaN
        inner.masked_fill_(self._by_token(active.unused), 0)
        return inner.to(x.dtype)

    def _by_token(self, by_row: torch.Tensor) -> torch.Tensor:
        rows = self._step.row_of_logit if self.has_head else self._step.row_of_token
        return by_row if rows is None else by_row.index_select(0, rows)


def joined_weight(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights [out, in] of siblings, stacked; a single one is not copied."""
    return weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])


def joined_bias(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    """Biases of siblings, stacked; None if none has one."""
    if all(bias is None for bias in biases):
        return None
    parts = zip(weights, biases, strict=True)
    return torch.cat([w.new_zeros(len(w)) if b is None else b.detach() for w, b in parts])


class BlendedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or of GPT-2's `Conv1D`: one of `siblings`."""

    def __init__(
        self,
        shape: Sequence[int],
        siblings: Siblings,
        position: int,
        *,
        has_bias: bool = False,
        transposed: bool = False,
    ) -> None:
        """`shape`: (out_features, in_features). `transposed`: the checkpoint keeps the weight
        [in, out].
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.siblings, self.position = siblings, position
        self.has_bias, self.transposed = has_bias, transposed

    @property
    def weight(self) -> torch.Tensor:
        """[out, in]: some routers ask for its type, or multiply by it themselves."""
        return self.siblings.weight(self.position)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in] -> [..., out]."""
        return self.siblings.output(self.position, x)
