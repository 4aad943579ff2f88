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

    Trees of dicts, lists and tuples are written into JSON; of others only the paths are, and the tree is learned when the
    first variables or inputs are seen.

    Attributes:
      variables: path, shape and dtype of each leaf, in the tree's order.
      inputs: likewise.
      trees: what is known of the two trees; not part of what makes structures equal.
    """

    variables: tuple[tuple[Path, Shape], ...]
    inputs: tuple[tuple[Path, Shape], ...]
    trees: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_trees(cls, variables: PyTree, inputs: tuple[Any, ...]) -> Structure:
        """Return the structure of variables and inputs, or of their shapes.

        Example:
          >>> Structure.of_trees({"w": jnp.ones(2)}, (jnp.ones((3, 2)),)).inputs
          (('0', ((3, 2), 'float32')),)
        """
        trees = {"variables": jax.tree.structure(variables), "inputs": jax.tree.structure(inputs)}
        return cls(variables=_shapes(variables), inputs=_shapes(inputs), trees=trees)

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
        self.trees.setdefault("variables", jax.tree.structure(variables))
        return leaves

    def learn_inputs(self, inputs: Sequence[Any]) -> None:
        """Take the inputs' tree from inputs."""
        self.trees.setdefault("inputs", jax.tree.structure(tuple(inputs)))

    def variable_shapes(self) -> PyTree:
        """Return the variables' tree of shapes.

        Raises:
          ValueError: if the tree is not known.
        """
        return _tree(self.trees.get("variables"), [_struct(shape) for _, shape in self.variables], "variables", "Plan.split")

    def input_shapes(self, shapes: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Return the inputs' tree of shapes, as planned or as given."""
        flat = [_struct(shape) for _, shape in self.inputs] if shapes is None else list(shapes)
        return _tree(self.trees.get("inputs"), flat, "inputs", "the first stage")

    def described(self) -> dict[str, Any]:
        """Return the structure as JSON has it."""
        forms = {name: _form(jax.tree.unflatten(tree, range(tree.num_leaves))) for name, tree in self.trees.items()}
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
        return cls(variables=leaves["variables"], inputs=leaves["inputs"], trees=trees)


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


def _tree(tree: Any, leaves: Sequence[Any], what: str, where: str) -> Any:
    if tree is None:
        raise ValueError(f"the plan was read from JSON, and the tree of its {what} is not known: call {where} first.")
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
