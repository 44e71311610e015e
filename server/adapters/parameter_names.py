"""Between the names of a model's parameters and those of its files."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch


class ParameterNames(Protocol):
    """How a parameter is kept in files, where the names differ."""

    def split(self, parameter: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tensors of the files that a parameter is made of, by name, as views of `tensor`."""

    def join(self, parameter: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A parameter, made of the tensors of the files, which `read` reads by name."""


class SameNames:
    """Files that call tensors as the model calls its parameters."""

    def split(self, parameter: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The parameter itself."""
        return {parameter: tensor}

    def join(self, parameter: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor of this name."""
        return read(parameter)
