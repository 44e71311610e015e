"""The merge methods, in the order in which they are shown."""

from collections.abc import Mapping

from merging.methods.linear import linear
from merging.methods.method import Method
from merging.methods.task_arithmetic import task_arithmetic

METHODS: Mapping[str, Method] = {method.name: method for method in (task_arithmetic, linear)}
