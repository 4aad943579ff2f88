"""Type aliases shared by the whole package."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
PyTree = Any
Path = str
"""The name of a leaf: its keys joined by '/', e.g. ``'Dense_0/kernel'``."""

Step = int | Array
Schedule = Callable[[Step], Array]
"""step -> value, a traced function (never a Python branch on the step)."""

Select = str | tuple[str, ...] | Callable[[Path, Any], bool]
"""Which leaves: a glob pattern over paths, several of them, or a predicate ``(path, leaf) -> bool``."""
