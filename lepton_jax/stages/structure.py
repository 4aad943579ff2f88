"""The form of a model's variables and inputs, which a plan keeps so that its stages can trace the model again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Path, PyTree

Shape = tuple[tuple[int, ...], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """Shapes and dtypes of variables and inputs, and their trees.

    Trees of dicts, lists and tuples are written into JSON; of others only the paths are, and the tree is taken from the
    variables that are split and the inputs that the first stage is given.

    Attributes:
      variables: path, shape and dtype of each leaf, in the tree's order.
      inputs: likewise.
      variables_tree, inputs_tree: None of a plan that was read from JSON, if JSON could not hold them; not part of what makes
        structures equal.
    """

    variables: tuple[tuple[Path, Shape], ...]
    inputs: tuple[tuple[Path, Shape], ...]
    variables_tree: Any = dataclasses.field(default=None, compare=False, repr=False)
    inputs_tree: Any = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of_trees(cls, variables: PyTree, inputs: tuple[Any, ...]) -> Structure:
        """Return the structure of variables and inputs, or of their shapes.

        Example:
          >>> Structure.of_trees({"w": jnp.ones(2)}, (jnp.ones((3, 2)),)).inputs
          (('0', ((3, 2), 'float32')),)
        """
        trees = {"variables_tree": jax.tree.structure(variables), "inputs_tree": jax.tree.structure(inputs)}
        return cls(variables=_shapes(variables), inputs=_shapes(inputs), **trees)

    def leaves_of(self, variables: PyTree) -> dict[Path, Any]:
        """Return the leaves of a tree by path, if it is one of these.

        Raises:
          ValueError: names what is missing or has another shape.
        """
        leaves = paths.flatten(variables)
        with collect("Plan.split: these are not the variables of the plan") as problems:
            for path, (shape, _) in self.variables:
                if path not in leaves:
                    problems.append(f"{path}: missing")
                elif tuple(jnp.shape(leaves[path])) != shape:
                    problems.append(f"{path}: shape {tuple(jnp.shape(leaves[path]))}, planned {shape}")
        return leaves

    def variable_shapes(self, tree: Any = None) -> PyTree:
        """Return the tree of the variables' shapes.

        Args:
          tree: the structure of the variables, if the plan does not know it.

        Raises:
          ValueError: if the tree is not known.
        """
        shapes = [_struct(shape) for _, shape in self.variables]
        return _tree(self.variables_tree if tree is None else tree, shapes, "variables", "take the parts that Plan.split gives")

    def input_shapes(self, tree: Any = None, shapes: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Return the inputs' tree of shapes, as planned or as given; `tree` as for `variable_shapes`."""
        flat = self.flat_inputs() if shapes is None else list(shapes)
        return _tree(self.inputs_tree if tree is None else tree, flat, "inputs", "call the first stage of the same model first")

    def flat_inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Return the planned shapes of the inputs' leaves."""
        return [_struct(shape) for _, shape in self.inputs]

    def described(self) -> dict[str, Any]:
        """Return the structure as JSON has it."""
        trees = {"variables": self.variables_tree, "inputs": self.inputs_tree}
        forms = {
            name: _form(jax.tree.unflatten(tree, range(tree.num_leaves))) for name, tree in trees.items() if tree is not None
        }
        return {"variables": self.variables, "inputs": self.inputs, "trees": {k: f for k, f in forms.items() if f is not None}}

    @classmethod
    def of_description(cls, read: dict[str, Any]) -> Structure:
        """Undo `described`."""
        leaves = {
            name: tuple(
                (str(path), (tuple(int(n) for n in shape), str(jnp.dtype(dtype) if "key" not in dtype else dtype)))
                for path, (shape, dtype) in read[name]
            )
            for name in ("variables", "inputs")
        }
        trees = {name: jax.tree.structure(_formed(form)) for name, form in read["trees"].items()}
        return cls(**leaves, variables_tree=trees.get("variables"), inputs_tree=trees.get("inputs"))


def _shapes(tree: PyTree) -> tuple[tuple[Path, Shape], ...]:
    found = paths.flatten(tree)
    return tuple((path, (tuple(int(n) for n in np.shape(leaf)), str(jnp.result_type(leaf)))) for path, leaf in found.items())


def _struct(shape: Shape) -> jax.ShapeDtypeStruct:
    size, dtype = shape
    if dtype.startswith("key<"):
        kind = dtype.removeprefix("key<").removesuffix(">")
        return jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=_KEYS.get(kind, kind)), size))
    return jax.ShapeDtypeStruct(size, jnp.dtype(dtype))


_KEYS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def _tree(tree: Any, leaves: Sequence[Any], what: str, remedy: str) -> Any:
    if tree is None:
        raise ValueError(f"the plan was read from JSON, which does not hold the form of its {what}: {remedy}.")
    return jax.tree.unflatten(tree, leaves)


def _form(tree: Any) -> Any:
    """A tree of dicts, lists and tuples as JSON has it; None if there is anything else in it."""
    if isinstance(tree, int):
        return tree
    if type(tree) is dict and all(type(key) is str for key in tree):
        parts = {key: _form(value) for key, value in tree.items()}
        return None if any(part is None for part in parts.values()) else {"dict": parts}
    if type(tree) in (list, tuple):
        parts_ = [_form(value) for value in tree]
        return None if any(part is None for part in parts_) else {type(tree).__name__: parts_}
    return None


def _formed(form: Any) -> Any:
    if isinstance(form, int):
        return form
    [(kind, parts)] = form.items()
    if kind == "dict":
        return {key: _formed(value) for key, value in parts.items()}
    return (list if kind == "list" else tuple)(_formed(value) for value in parts)
