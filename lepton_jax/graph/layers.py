"""The layers of a function: its weights of dots and convolutions, as matrices and with their axes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Path, PyTree, Select
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph.layout import Layout, Use
from lepton_jax.graph.roles import Weights, roles_of
from lepton_jax.graph.trace import Apply, Traced, trace
from lepton_jax.graph.weights import uses_and_rest, weight_uses


@dataclass(frozen=True, kw_only=True, eq=False)
class Layers:
    """What `layers` finds.

    Args:
      traced: the graph.
      uses: by path, in the order in which the layers run: the operations that multiply by the leaf.
      leaves: the weights, in the same order.
      left: why by path, for every leaf that looks like a weight but is none that can be treated; they are left alone.
      weights: what every leaf is.

    Example:
      >>> import jax.numpy as jnp
      >>> found = layers(lambda v, x: v["table"][x] @ v["w"], {"table": jnp.ones((9, 2)), "w": jnp.ones((2, 3))}, jnp.arange(4))
      >>> list(found.uses), found.left
      (['w'], {'table': 'is a table whose rows are looked up'})
    """

    traced: Traced
    uses: Mapping[Path, list[Use]]
    leaves: Mapping[Path, Any]
    left: Mapping[Path, str]
    weights: Weights

    @property
    def layouts(self) -> dict[Path, Layout]:
        """Every leaf as a matrix, or as a stack of them."""
        return {path: uses[0].layout for path, uses in self.uses.items()}

    def axes(self, path: Path) -> WeightAxes | None:
        """What the axes of a leaf are; None if it is not clear."""
        return self.weights.axes(path)

    def warn(self, name: str) -> None:
        """Name, in one warning, what the caller's caller left alone."""
        if self.left:
            named = "; ".join(f"{path}: {why}" for path, why in self.left.items())
            warnings.warn(f"{name} leaves alone what looks like a weight: {named}.", stacklevel=3)


@checked
def layers(apply: Apply, variables: PyTree, *inputs: Any, select: Select | None = None) -> Layers:
    """Find the layers of a function, whoever wrote it, in the order in which they run.

    Args:
      apply: ``apply(variables, *inputs)``.
      variables: arrays, or their shapes.
      *inputs: likewise.
      select: which leaves; each must be a weight of dots or convolutions. None: all that are; others that look like weights
        (look-ups, those of which the use is not clear) are left alone, and named in `left`.

    Raises:
      ValueError: with every selected leaf that is no layer's weight, and what stands in its way; or if there is no layer.

    Example:
      >>> import jax.numpy as jnp
      >>> found = layers(lambda v, x: x @ v["w"].T + v["b"], {"b": jnp.ones((1, 3)), "w": jnp.ones((3, 2))}, jnp.ones((1, 2)))
      >>> found.layouts["w"].matrix(jnp.ones((3, 2))).shape, found.axes("w").outputs, list(found.left)
      ((2, 3), (0,), [])
    """
    traced = trace(apply, variables, *inputs)
    known = Weights(roles_of(traced, isinstance(variables, Mapping) and "params" in variables))
    held = paths.flatten(variables)
    if select is not None:
        chosen = paths.select(variables, select)
        uses: dict[Path, list[Use]] = weight_uses(traced, list(chosen))
        return Layers(traced=traced, uses=uses, leaves={path: held[path] for path in uses}, left={}, weights=known)
    floating = {path: role for path, role in known.roles.items() if paths.is_floating(held[path])}
    left = {p: "is a table whose rows are looked up" for p, role in floating.items() if role.kind == "look-up"}
    left |= {p: "is read by what cannot be looked into" for p, role in floating.items() if role.kind == "unseen"}
    left |= {
        p: "has one axis" for p, role in floating.items() if role.kind == "weight" and not (role.is_weight or role.unclear)
    }
    others = [p for p, r in floating.items() if r.kind == "weight" or (r.kind == "other" and paths.matrices(p, held[p]))]
    others = [path for path in others if path not in left]
    uses, rest = uses_and_rest(traced, others)
    left |= rest
    if not uses:
        heading = f"{traced.name} must have a weight of a dot or a convolution; none of its leaves is one that could be treated"
        with collect(heading) as problems:
            problems.extend([f"{path}: {why}" for path, why in left.items()] or ["it multiplies by no leaf"])
    return Layers(traced=traced, uses=uses, leaves={path: held[path] for path in uses}, left=left, weights=known)


__all__ = ["Layers", "layers"]
