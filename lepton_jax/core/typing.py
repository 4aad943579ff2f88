"""Type aliases shared by the whole package."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import jax

Array = jax.Array
PyTree = Annotated[Any, "a tree of arrays"]
Path = str
"""The name of a leaf: its keys joined by '/', e.g. ``'Dense_0/kernel'``."""

Step = int | Array
Schedule = Callable[[Step], Array]
"""step -> value, a traced function (never a Python branch on the step)."""

Select = str | tuple[str, ...] | Callable[[Path, Any], bool]
"""Which leaves: a glob pattern over paths, several of them, or a predicate ``(path, leaf) -> bool``."""


class ModelApply(Protocol):
    """A model as a pure function: ``(params, model_state, inputs, *, train, key) -> (outputs, new model_state)``."""

    def __call__(
        self, params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]: ...
