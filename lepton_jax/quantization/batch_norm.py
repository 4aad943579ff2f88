"""Batch-norm re-estimation: running statistics of the network as it is now, quantized."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, ModelApply, Path, PyTree


@checked
def re_estimate_batch_norm(
    apply: ModelApply,
    params: PyTree,
    model_state: PyTree,
    batches: Iterable[Any],
    *,
    collection: str = "batch_stats",
    key: Array | None = None,
) -> PyTree:
    """Replace running statistics by those of the given batches, under the parameters as they are seen.

    Running averages are of the weights of earlier steps: at few bits, weights jump between levels and the averages are of
    networks that are no more. Over batches of sizes n_b, ``mean = sum_b n_b mean_b / n`` and, by the law of total variance,
    ``var = sum_b n_b (var_b + mean_b^2) / n - mean^2``: in the first layer exactly those of all examples together, in
    later ones of activations normalised batch by batch, as in training. Statistics of other names are averaged.

    A batch's own statistics are found through the running ones: ``new = m old + (1 - m) batch``, so the derivative by ``old``
    is the momentum, and ``new`` for ``old = 0`` gives the batch's. That holds for any model whose training updates averages.

    Args:
      apply: the model.
      params: as the model sees them: ``transform.view(params, tstate)``.
      model_state: the model's other collections.
      batches: inputs, streamed; their first axis is the batch.
      collection: of the statistics.
      key: for dropout, if there is any.

    Returns:
      The model's other collections with new statistics.

    Raises:
      ValueError: if there is no such collection, no batch, or a statistic that does not move in training mode.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.training import linen_apply
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train=False):
      ...         return nn.BatchNorm(use_running_average=not train)(x)
      >>> x = jnp.arange(4.0).reshape(4, 1)
      >>> variables = dict(Net().init(jax.random.key(0), x))
      >>> params = variables.pop("params")
      >>> stats = re_estimate_batch_norm(linen_apply(Net()), params, variables, [x[:2], x[2:]])["batch_stats"]
      >>> stats["BatchNorm_0"]["mean"], stats["BatchNorm_0"]["var"]
      (Array([1.5], dtype=float32), Array([1.25], dtype=float32))

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks", section 3.2.1; Nagel et al. 2022, "Overcoming
    oscillations in quantization-aware training", section 4.1; Li et al. 2017, "Revisiting batch normalization", section 3.
    """
    if collection not in model_state:
        there = ", ".join(model_state) or "none"
        raise ValueError(
            f"re_estimate_batch_norm: there is no collection {collection!r}. The model's collections are: {there}."
        )
    # Sums of means, and of second moments where there is a mean beside the variance.
    sums: dict[Path, Array] = {}
    count = 0
    run = functools.partial(_batch_statistics, apply, collection)
    for inputs in batches:
        size = jax.tree.leaves(inputs)[0].shape[0]
        found = paths.flatten(run(params, model_state, inputs, key))
        sums = {path: sums.get(path, 0.0) + size * value for path, value in found.items()}
        count += size
    if not count:
        raise ValueError("re_estimate_batch_norm: there is no batch to estimate statistics on; give at least one.")
    means = {path: value / count for path, value in sums.items()}
    with collect("re_estimate_batch_norm: these statistics do not move in training mode") as problems:
        problems.extend(
            f"{path}: apply(..., train=True) must update it; let the module pass `train` on"
            for path, value in means.items()
            if not bool(jnp.all(jnp.isfinite(value)))
        )
    new = {p: jnp.maximum(v - means[_mean_of(p)] ** 2, 0) if _mean_of(p) in means else v for p, v in means.items()}
    old = paths.flatten(model_state[collection])
    new = {path: value.astype(old[path].dtype) for path, value in new.items()}
    return {**model_state, collection: paths.replace(model_state[collection], new)}


def _mean_of(path: Path) -> Path:
    """Return the path of the mean that belongs to a variance; of anything else, one that there is not."""
    head, _, last = path.rpartition("/")
    return f"{head}/mean".lstrip("/") if last == "var" else f"{path}/"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_statistics(
    apply: ModelApply, collection: str, params: PyTree, model_state: PyTree, inputs: Any, key: Array | None
) -> PyTree:
    """Return a batch's own statistics; variances as second moments. What does not move is NaN."""

    def after(stats: PyTree) -> dict[Path, Array]:
        return paths.flatten(apply(params, {**model_state, collection: stats}, inputs, train=True, key=key)[1][collection])

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), model_state[collection])
    ones = jax.tree.map(jnp.ones_like, zeros)
    new, momentum = jax.jvp(after, (zeros,), (ones,))
    # A momentum such as 0.99 is no float32; to seven places, 1 - 0.99 is 0.01 again.
    moved = {path: jnp.round((1 - m) * 1e7) / 1e7 for path, m in momentum.items()}
    # Where less than a millionth is the batch's, rounding would be all there is.
    own = {path: jnp.where(moved[path] > 1e-6, new[path] / moved[path], jnp.nan) for path in new}
    return {path: v + own[_mean_of(path)] ** 2 if _mean_of(path) in own else v for path, v in own.items()}
