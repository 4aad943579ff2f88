"""A plan: which channels go, in the coordinates of the parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.core.errors import collect
from lepton_jax.core.paths import path_str
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.axes import analyse_traced
from lepton_jax.graph.trace import Apply, split_keywords, trace
from lepton_jax.pruning.channels.factored import shrink_state
from lepton_jax.pruning.channels.groups import Group, Place, atoms_of, removed_places
from lepton_jax.pruning.channels.match import Matcher
from lepton_jax.pruning.channels.plan_text import describe, from_json, not_read, summary, to_json
from lepton_jax.pruning.channels.shrink import Layout, Shrinker, take


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """Which channels of a model are removed.

    It speaks of parameters alone: axis `a` of the leaf at path `p` loses the indices ``removed[p, a]``. So one plan shrinks the
    variables, the optimiser's moments and moving averages (every leaf whose path ends in a variable's), and rewrites any
    function of these variables, at any input shape, in train mode and in eval mode.

    For all values of the kept parameters, the function of the shrunk variables equals the original function of the
    masked ones, and so do its gradients.

    Example:
      >>> from lepton_jax.pruning.channels import plan
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[1.0, -3.0, 2.0]]), "down": jnp.array([[1.0], [2.0], [0.5]])}
      >>> half = plan(apply, variables, jnp.ones((1, 1)), fraction=0.34)
      >>> half.removed
      {('down', 0): (0,), ('up', 1): (0,)}
      >>> jax.jit(half.rewrite(apply))(half.shrink(variables), jnp.ones((1, 1)))
      Array([[1.]], dtype=float32)
    """

    shapes: Mapping[Path, tuple[int, ...]]
    """The original shape of every variable."""
    groups: tuple[Group, ...]
    fixed: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    """The axes that cannot lose any index, and why."""
    unknown: tuple[str, ...] = ()
    """The primitives that the analysis does not know; the axes of their operands and results are fixed."""
    unread: tuple[Path, ...] = ()
    """The leaves that the function does not read; what no other leaf goes with is left alone."""

    def __post_init__(self) -> None:
        with collect("A plan must leave every group at least one channel, and every axis at least one index") as problems:
            for group in self.groups:
                if len(group.removed) >= group.size:
                    problems.append(f"{group.name}: would lose all of its {group.size} channels")
                if not set(group.removed) <= set(range(group.size)):
                    problems.append(f"{group.name}: has the channels 0 to {group.size - 1}; got {group.removed}")
            for (path, axis), indices in removed_places(self.groups).items():
                if len(indices) == self.shapes[path][axis]:
                    problems.append(f"{path}: axis {axis} would lose all of its {len(indices)} indices")

    @cached_property
    def removed(self) -> Mapping[Place, tuple[int, ...]]:
        """``{(leaf path, axis): removed indices}``."""
        return removed_places(self.groups)

    @cached_property
    def _keep(self) -> dict[Path, tuple[np.ndarray, ...]]:
        keeps = {path: tuple(np.ones(n, bool) for n in shape) for path, shape in self.shapes.items()}
        for (path, axis), indices in self.removed.items():
            keeps[path][axis][list(indices)] = False
        return keeps

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self.shapes)

    def left(self, path: Path) -> tuple[int, ...]:
        """The shape that is left of a variable."""
        return tuple(int(keep.sum()) for keep in self._keep[path])

    def find(self, path: Path) -> Path | None:
        """The variable in whose path this one ends, or None."""
        return self._matcher.find(path)

    def shrink(self, tree: PyTree, *, min_dim_size_to_factor: int = 128) -> PyTree:
        """Cut the removed indices out of every leaf whose path ends in a variable's.

        Leaves of other paths, and scalars, are passed over. Dtypes stay. Shapes alone (`jax.ShapeDtypeStruct`) will do. Of
        Adafactor's second moments, kept as means over rows and columns, new means are taken, such that the estimate of every
        moment left is what it was; they are factored by the axes that optax factors the smaller weights by, or not at all.

        Args:
          tree: variables, an optimiser state, moving averages..., at the original shapes.
          min_dim_size_to_factor: what `optax.adafactor` was made with; this is its default.

        Raises:
          ValueError: if such a leaf does not have the variable's original shape, or no leaf is a variable's.
        """

        def factored(place: Path, state: optax.FactoredState, problems: list[str]) -> optax.FactoredState:
            return shrink_state(state, place, self._shapes_of, self.cut, min_dim_size_to_factor, problems)

        return self._map(tree, self.cut, self.shapes, factored=factored)

    def _shapes_of(self, path: Path) -> tuple[Path, tuple[int, ...], tuple[int, ...]] | None:
        variable = self._matcher.find(path)
        return None if variable is None else (variable, self.shapes[variable], self.left(variable))

    def mask(self, tree: PyTree) -> PyTree:
        """Set the removed indices to 0 in every leaf whose path ends in a variable's.

        All coupled slices are set to 0 (kernels on both sides, biases, scales, running statistics), so that a masked
        channel is silent. Differentiable; apply it at every step to train before cutting. Adafactor's means over rows and
        columns stay as they are: none of them is a removed weight's alone.

        Args:
          tree: as for `shrink`.

        Raises:
          ValueError: as for `shrink`.
        """
        return self._map(tree, self._zero, self.shapes)

    def cut(self, path: Path, leaf: Any) -> Any:
        """Cut the removed indices out of one leaf, of original shape, whose path ends in a variable's."""
        path = self.find(path) or path
        keeps = self._keep[path]
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.left(path), leaf.dtype)
        for axis, keep in enumerate(keeps):
            if not keep.all():
                indices = np.flatnonzero(keep)
                leaf = leaf.take(indices, axis) if isinstance(leaf, np.ndarray) else take(leaf, indices, axis)
        return leaf

    def _zero(self, path: Path, leaf: Any) -> Any:
        for axis, keep in enumerate(self._keep[path]):
            if not keep.all():
                shape = [1] * len(leaf.shape)
                shape[axis] = -1
                kept = jnp.broadcast_to(keep.reshape(shape), leaf.shape)
                leaf = jnp.where(kept, leaf, jnp.zeros((), leaf.dtype))
        return leaf

    def _map(
        self,
        tree: PyTree,
        change: Callable[[Path, Any], Any],
        expected: Mapping[Path, tuple[int, ...]],
        what: str = "a tree",
        factored: Callable[[Path, optax.FactoredState, list[str]], optax.FactoredState] = lambda _, state, __: state,
    ) -> PyTree:
        found = 0
        with collect(f"This plan is for other shapes than those of {what}") as problems:

            def one(key_path: Any, leaf: Any) -> Any:
                nonlocal found
                path = path_str(key_path)
                if isinstance(leaf, optax.FactoredState):
                    found += 1
                    return factored(path, leaf, problems)
                variable = self._matcher.find(path)
                shape = tuple(getattr(leaf, "shape", ()))
                if variable is None or (not shape and expected[variable]):
                    return leaf
                found += 1
                if shape != expected[variable]:
                    problems.append(f"{path}: must have the shape {expected[variable]} of {variable}; got {shape}")
                    return leaf
                return change(variable, leaf)

            result = jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda x: isinstance(x, optax.FactoredState))
            if not found:
                names = ", ".join(list(self.shapes)[:5])
                problems.append(f"no leaf's path ends in that of a variable, such as {names}")
        return result

    def rewrite(self, apply: Apply) -> Apply:
        """Return the function that takes the shrunk variables where `apply` takes the original ones.

        At every call it traces `apply` at the original shapes of the variables and the given inputs, and evaluates its
        graph with the channels that are left. It is an ordinary function: jit it (which makes that once a shape),
        differentiate it, map it, export it.

        Args:
          apply: ``apply(variables, *inputs, **static)``, the one planned with or another of the same variables.

        Raises:
          ValueError: when called with variables of other shapes, or if `apply` needs a removed channel; with the reason.
        """
        left = {path: self.left(path) for path in self.shapes}

        def original(path: Path, leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(self.shapes[path], leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))

        @wraps(apply)
        def rewritten(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
            structs = self._map(variables, original, left, "the shrunk variables")
            traced = trace(apply, structs, *inputs, **static)
            layout = Layout(
                analyse_traced(traced, self._labels(traced.variables, traced.in_avals), cutting=True), traced.variables
            )
            arrays, _ = split_keywords(static)
            outs = Shrinker(traced, layout).run(traced.flatten(variables, inputs, arrays))
            return jax.tree.unflatten(traced.out_tree, outs)

        return rewritten

    def _labels(self, paths: tuple[Path, ...], avals: list[Any]) -> list[tuple[np.ndarray, ...]]:
        """Atoms for the removed indices, 0 for all others."""
        keeps = []
        for path, aval in zip(paths, avals):
            variable = self._matcher.find(path)
            if variable is not None and tuple(aval.shape) == self.shapes[variable]:
                keeps.append(self._keep[variable])
            else:
                keeps.append(tuple(np.ones(n, bool) for n in aval.shape))
        return atoms_of(keeps)

    def then(self, later: "Plan") -> "Plan":
        """Join a plan made for the shrunk model to this one: one plan from the original model to the smaller.

        Args:
          later: a plan for ``(self.rewrite(apply), self.shrink(variables))``.

        Raises:
          ValueError: if `later` is for other shapes, or removes what this plan has no channel for.
        """
        with collect("The later plan is not one for what this plan leaves") as problems:
            for path in self.shapes:
                if later.shapes.get(path) != self.left(path):
                    problems.append(f"{path}: must have the shape {self.left(path)}; got {later.shapes.get(path)}")
        channel: dict[tuple[Path, int, int], tuple[int, int]] = {}
        for number, group in enumerate(self.groups):
            for s in group.slices:
                for c, indices in enumerate(s.indices):
                    channel.update(((s.path, s.axis, int(i)), (number, c)) for i in indices)
        removed = [set(group.removed) for group in self.groups]
        with collect("The later plan removes what is not a channel here") as problems:
            for (path, axis), indices in later.removed.items():
                original = np.flatnonzero(self._keep[path][axis])
                for i in indices:
                    place = channel.get((path, axis, int(original[i])))
                    if place is None:
                        problems.append(f"{path}: axis {axis}, index {original[i]}")
                    else:
                        removed[place[0]].add(place[1])
        groups = tuple(replace(g, removed=tuple(sorted(r))) for g, r in zip(self.groups, removed))
        return replace(self, groups=groups)

    def to_json(self) -> str:
        """The plan as a JSON text; `from_json` gives it back."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from the text of `to_json`.

        Raises:
          ValueError: if the text is no such plan.
        """
        return cls(**from_json(text))

    def __repr__(self) -> str:
        return f"Plan({summary(self)}{'; ' if self.unread else ''}{not_read(self)})"

    def __str__(self) -> str:
        """Every group with its coupled slices, by path, then the fixed axes and why, and the leaves that are not read."""
        return describe(self)
