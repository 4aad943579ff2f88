"""The variables of one stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from lepton_jax.core.typing import Array, Path


@jax.tree_util.register_pytree_with_keys_class
class Part(dict[Path, Array]):
    """The variables of a stage by the paths that they have in the model: a dict that knows of which tree they are.

    Its stage traces the model anew, and has to give it variables of the right form; a plain dict will do where the plan knows
    the form itself.

    Args:
      leaves: by path.
      tree: the structure of all the model's variables.

    Example:
      >>> part = Part({"a": 1.0}, jax.tree.structure({"a": 1, "b": 1}))
      >>> double = jax.tree.map(lambda x: 2 * x, part)
      >>> double, double.tree == part.tree
      ({'a': 2.0}, True)
    """

    def __init__(self, leaves: Mapping[Path, Any], tree: Any):
        super().__init__(leaves)
        self.tree = tree

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Return the leaves with their keys, in the order of the paths, and what is not a leaf."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], (names, self.tree)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return the leaves, and what is not a leaf."""
        names = tuple(sorted(self))
        return [self[name] for name in names], (names, self.tree)

    @classmethod
    def tree_unflatten(cls, aux: Any, leaves: Any) -> Part:
        """Undo `tree_flatten`."""
        names, tree = aux
        return cls(dict(zip(names, leaves)), tree)
