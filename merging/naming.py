"""How a model's files name its tensors, and how everything else here does."""

from collections.abc import Callable, Collection, Mapping

Naming = Callable[[Collection[str]], Mapping[str, str]]
"""From all names in a model's files to the names that are used here.

A tensor has the name of the model's parameter (`lm_head.weight`, whatever its file says). Where
files hold a parameter in parts, such as the experts of a layer one by one, each part has a name of
its own. A name that the model does not know stays as it is.
"""


def as_in_files(names: Collection[str]) -> Mapping[str, str]:
    """The naming of a model whose files have the names of its parameters."""
    return {name: name for name in names}
