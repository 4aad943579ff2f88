"""GraSP: preserving gradient flow at initialisation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Gathered, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grasp(Gathered):
    """Score a weight by how much gradient flow its removal costs: ``w (H g)``, with gradient `g` and Hessian `H` at the start.

    To first order, a change `d` of the weights changes the squared norm of the gradient by ``2 d' H g``. Removing weight q is
    ``d = -w_q e_q``, so the flow changes by ``-2 w_q (H g)_q``: what falls most is where ``w (H g)`` is highest, and that is
    kept. The paper's own score is ``S = -w (H g)``, of which it *removes* the highest: the same masks. Scores of either
    sign are meant as they are: a negative one says that removal adds to the flow. Computed once, in `init_all`.

    Args:
      loss: ``loss(params) -> scalar`` over the whole tree that is pruned; twice differentiable. The paper divides the logits by
        a temperature of 200 first.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.array([2.0, 1.0])}
      >>> criterion = Grasp(loss=lambda p: (jnp.array([1.0, 3.0]) * p["w"] ** 2).sum() / 2)  # g = [2, 3], H g = [2, 9]
      >>> criterion.score_all(params, criterion.init_all(params, params), params)["w"].tolist()
      [4.0, 9.0]

    Source: Wang, Zhang, Grosse 2020, "Picking winning tickets before training by preserving gradient flow", equation 8 and
    algorithm 1. Gradient and Hessian are over the selected weights, as there.
    """

    loss: Callable[[PyTree], Array] = dataclasses.field(repr=False)

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        gradient = jax.grad(lambda leaves: self.loss(paths.replace(params, leaves)))
        curvature = jax.jit(lambda leaves: jax.jvp(gradient, (leaves,), (gradient(leaves),))[1])
        curved = curvature(dict(weights))
        return {path: wide(weight) * wide(curved[path]) for path, weight in weights.items()}
