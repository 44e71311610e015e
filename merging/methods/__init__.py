"""The merge methods, in the order in which they are shown."""

import logging
from collections.abc import Mapping

from merging.methods.arcee_fusion import arcee_fusion
from merging.methods.breadcrumbs import breadcrumbs
from merging.methods.breadcrumbs_ties import breadcrumbs_ties
from merging.methods.core_space import core_space
from merging.methods.dare_linear import dare_linear
from merging.methods.dare_ties import dare_ties
from merging.methods.della import della
from merging.methods.della_linear import della_linear
from merging.methods.expo import expo
from merging.methods.karcher import karcher
from merging.methods.linear import linear
from merging.methods.lines import lines
from merging.methods.method import Method
from merging.methods.model_stock import model_stock
from merging.methods.multislerp import multislerp
from merging.methods.nearswap import nearswap
from merging.methods.nuslerp import nuslerp
from merging.methods.passthrough import passthrough
from merging.methods.plugins import load_plugins
from merging.methods.ram import ram
from merging.methods.ramplus_tl import ramplus_tl
from merging.methods.sce import sce
from merging.methods.slerp import slerp
from merging.methods.task_arithmetic import task_arithmetic
from merging.methods.ties import ties

BUILT_IN: Mapping[str, Method] = {
    method.name: method
    for method in (
        task_arithmetic,
        linear,
        ties,
        dare_linear,
        dare_ties,
        breadcrumbs,
        breadcrumbs_ties,
        della,
        della_linear,
        sce,
        ram,
        ramplus_tl,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        model_stock,
        nearswap,
        arcee_fusion,
        passthrough,
        lines,
        expo,
        core_space,
    )
}

_plugins = load_plugins(BUILT_IN)
for _problem in _plugins.problems:
    logging.getLogger(__name__).warning("%s", _problem)

METHODS: Mapping[str, Method] = {**BUILT_IN, **{m.name: m for m in _plugins.methods}}
PLUGIN_PROBLEMS = _plugins.problems
"""Why methods of other packages are missing from METHODS."""
