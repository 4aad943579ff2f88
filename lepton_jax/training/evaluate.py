"""Error and loss on a split; the view is computed once, not once a batch."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.graph.lowering import fast_lowering
from lepton_jax.training.classification import cross_entropy
from lepton_jax.training.placement import Placement
from lepton_jax.training.sharding import replicate
from lepton_jax.training.state import TrainState

Evaluate = Callable[[TrainState], dict[str, float]]


@checked
def make_evaluate(
    apply: ModelApply,
    transform: Transform,
    batches: Iterable[Any],
    *,
    lowering: bool = True,
    placement: Placement | None = None,
) -> Evaluate:
    """Make a function that measures a classifier on fixed batches, and the sparsity of its parameters.

    The batches are put on the device once and kept there. Padding (mask False) is not counted.

    Args:
      apply: the model, called with ``train=False``.
      transform: the view to evaluate under.
      batches: `images`, `labels` and `mask` of one shape each, e.g. ``eval_batches(split, 1000)``.
      lowering: as in `make_train_step`.
      placement: that of the state; the batches are put on all devices of its mesh.

    Returns:
      ``evaluate(state) -> {"error": ..., "loss": ..., "sparsity": ...}``: the fraction of wrong answers, the mean cross
      entropy, and the fraction of the parameters as the model sees them that are zero.

    Raises:
      ValueError: if there is no example.

    Example:
      >>> import numpy as np, optax
      >>> from flax import linen as nn
      >>> from lepton_jax import identity
      >>> from lepton_jax.data import Batch
      >>> from lepton_jax.training import create, linen_apply
      >>> batch = Batch(np.eye(2, dtype=np.float32), np.array([0, 0]), np.array([True, True]))
      >>> evaluate = make_evaluate(linen_apply(nn.Dense(2)), identity(), [batch])
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> evaluate(create(params, {}, optax.sgd(0.1), identity(), jax.random.key(0)))["error"]
      0.5
    """
    given = list(batches)
    count = sum(int(batch.mask.sum()) for batch in given)
    held = jax.device_put(given) if placement is None else replicate(given, placement.devices)
    if not count:
        raise ValueError("make_evaluate: there is no example to evaluate on; give at least one batch with a mask that is True.")

    @jax.jit
    def view(params: PyTree, tstate: Any) -> tuple[PyTree, Array]:
        seen = transform.view(params, tstate)
        leaves = jax.tree.leaves(seen)
        return seen, sum(jnp.sum(leaf == 0) for leaf in leaves) / sum(leaf.size for leaf in leaves)

    def evaluate(state: TrainState) -> dict[str, float]:
        params, sparsity = view(state.params, state.tstate)
        parts = jax.device_get([_totals(apply, lowering, params, state.model_state, batch) for batch in held])
        wrong, loss = (sum(float(part) for part in column) for column in zip(*parts))
        return {"error": wrong / count, "loss": loss / count, "sparsity": float(sparsity)}

    return evaluate


@functools.partial(jax.jit, static_argnums=(0, 1))  # at module level: compiled once for all the transforms of a model
def _totals(apply: ModelApply, lowering: bool, params: PyTree, model_state: PyTree, batch: Any) -> tuple[Array, Array]:
    """Return how many answers are wrong, and the sum of the losses."""
    run = fast_lowering(apply) if lowering else apply
    logits, _ = run(params, model_state, batch.images, train=False, key=None)
    wrong = jnp.argmax(logits, axis=-1) != batch.labels
    losses = cross_entropy(logits, batch.labels)
    return jnp.sum(wrong & batch.mask), jnp.sum(jnp.where(batch.mask, losses, 0))
