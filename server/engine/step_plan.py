"""What a step does: which rows pass through the model, and with how many tokens."""

from dataclasses import dataclass, field

from server.engine.group import Group, Row


@dataclass(slots=True, eq=False)
class RowWork:
    """One row's share of a step: `num_tokens` tokens from `row.num_computed` on."""

    group: Group
    row: Row
    num_tokens: int

    @property
    def num_logits(self) -> int:
        """How many of these tokens, the last ones, give logits that are needed."""
        end = self.row.num_computed + self.num_tokens
        return max(end - self.group.first_logits(self.row), 0)


@dataclass(slots=True)
class StepPlan:
    """What a step does, and what was seen while planning it.

    `new_blocks` are those that rows were given; they hold what their last row left behind.
    `num_read` counts the positions of given texts whose logits all pass through the head.
    """

    work: list[RowWork] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)
    preempted: list[Group] = field(default_factory=list)
    num_read: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(item.num_tokens for item in self.work)
