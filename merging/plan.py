"""A plan: what a recipe becomes on this base with these sources, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from merging.adapter import Adapter
from merging.adapter_tensors import shown
from merging.base import Base
from merging.blend import Blend
from merging.digest import json_digest
from merging.errors import PlanError
from merging.methods import METHODS
from merging.methods.method import Combination, Method
from merging.recipe import BASE, Recipe
from merging.setting import Scalar, Setting, resolve

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A recipe compiled for a base.

    `path` says how it is served and `reason` why. `coefficients`: what the recipe resolves to,
    float64 [num_modules] by source name, columns in the order of `base.linears`. `members`: the
    mean of those over the modules that the source touches; the ensemble twin's coefficients.
    """

    path: Literal["base", "blend"]
    reason: str
    blend: Blend
    base: Base
    adapters: Mapping[str, Adapter]
    coefficients: Mapping[str, Array]
    members: Mapping[str, float]
    warnings: tuple[str, ...] = ()
