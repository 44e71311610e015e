"""The errors that merging raises for users' mistakes.

    MergingError
    ├── SourceError            a source folder cannot be used
    │   ├── BaseMismatchError  a source was trained on another base
    │   └── DenseDeltaError    an adapter's delta is dense: PEFT has to merge it
    ├── RecipeError            a recipe is malformed: unknown method or parameter, weight not finite
    ├── PlanError              a recipe is well formed but cannot be built
    └── OutputError            a result cannot be written, or not in the form that is asked for

Each carries every reason that was found, not only the first.
"""

import errno
from collections.abc import Sequence
from typing import Final

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an OSError says of a disk that is full, whose user's share is, or that takes no file that
large.
"""


class MergingError(Exception):
    """A user's mistake; `reasons` lists all of them, one sentence each."""

    def __init__(self, reasons: str | Sequence[str]) -> None:
        self.reasons = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        super().__init__("; ".join(self.reasons))


class SourceError(MergingError):
    """A source folder cannot be used, for the reasons listed."""


class BaseMismatchError(SourceError):
    """A source records another base than the resident one."""


class DenseDeltaError(SourceError):
    """An adapter's delta is no product of two factors, for the reasons listed: PEFT has to merge it
    into the base.
    """


class RecipeError(MergingError):
    """A recipe is malformed."""


class PlanError(MergingError):
    """A recipe is well formed but cannot be built from these sources on this base."""


class OutputError(MergingError):
    """A result cannot be written where, or in the form that, it was asked for."""
