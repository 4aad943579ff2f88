"""SynFlow: conserving synaptic flow, without data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Gathered


def _absolute(leaf: Any) -> Any:
    return jnp.abs(leaf).astype(jnp.float64) if paths.is_floating(leaf) else leaf


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class SynFlow(Gathered):
    """Score a weight by the flow through it: ``|w| dR/d|w|``, with ``R = sum apply(|params|, ones)``.

    With every parameter (biases and norms too) made positive and an input of ones, `R` sums over all paths through the network
    the product of the weights on them; a score is the part that goes through the weight. Without biases the scores of every
    layer sum to `R`. Flow grows like a power of the depth, so it is computed in float64, and the scores are divided by the
    largest of all leaves, which no ranking sees. Computed once, in `init_all`; the paper's 100 rounds are
    ``iterative_masks(SynFlow(...), params, sparsity, rounds=100)``.

    Args:
      apply: ``apply(params, inputs) -> outputs`` on the tree that is pruned; in evaluation mode. Models that cast to a dtype of
        their own run in that one.
      inputs: an example of the inputs; shapes and dtypes alone are read. One example is enough.

    Example:
      >>> params = {"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([[2.0], [4.0]])}
      >>> criterion = SynFlow(apply=lambda p, x: x @ p["a"] @ p["b"], inputs=jnp.zeros((1, 1)))
      >>> scores = criterion.score_all(params, criterion.init_all(params, params), params)  # 2 and 12, over 12
      >>> [s.tolist() for s in scores.values()]
      [[[0.166..., 1.0]], [[0.166...], [1.0]]]

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", equations 1 and 3, algorithm 1. Deviation: scores are divided by their maximum.
    """

    apply: Callable[[PyTree, PyTree], PyTree] = dataclasses.field(repr=False)
    inputs: PyTree = dataclasses.field(repr=False)

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        with jax.enable_x64(True):
            ones = jax.tree.map(
                lambda x: jnp.ones(x.shape, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), self.inputs
            )
            held = jax.tree.map(_absolute, params)

            def flow(leaves: dict[Path, Array]) -> Array:
                outputs = self.apply(paths.replace(held, leaves), ones)
                return sum((jnp.sum(out) for out in jax.tree.leaves(outputs)), jnp.float64(0))

            sizes = {path: _absolute(weight) for path, weight in weights.items()}
            slopes = jax.jit(jax.grad(flow))(sizes)
            scores = {path: size * slopes[path].astype(jnp.float64) for path, size in sizes.items()}
            largest = jnp.max(jnp.stack([jnp.max(score, initial=0.0) for score in scores.values()]))
            scale = jnp.where(largest > 0, largest, 1.0)
            return {path: (score / scale).astype(jnp.float32) for path, score in scores.items()}
