"""Factors that change the loss least where it is steep: rows weighted by their Fisher information."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.moments import as_inputs
from lepton_jax.lowrank.method import ByPath, Method, Refused
from lepton_jax.lowrank.svd import Svd
from lepton_jax.lowrank.weighted import WeightedSvd


@checked
def squared_gradients(
    loss: Callable[..., Array], params: PyTree, batches: Iterable[Any], select: Select = paths.matrices
) -> dict[Path, Array]:
    """Return the mean over batches of the squared gradient of every selected leaf: its empirical Fisher information.

    Args:
      loss: ``loss(params, *batch) -> scalar``.
      params: arrays.
      batches: each one array, or a tuple. The smaller, the nearer to the Fisher information of single examples.
      select: which leaves.

    Raises:
      ValueError: for no batch, or a selector that matches nothing.

    Example:
      >>> squared_gradients(lambda p, x: (p["w"] * x).sum(), {"w": jnp.ones((1, 2))}, [jnp.array([[1.0, 3.0]])])["w"].tolist()
      [[1.0, 9.0]]

    Source: Kunstner, Balles, Hennig 2019, "Limitations of the empirical Fisher approximation", eq. 3.
    """
    selected = list(paths.select(params, select))

    @jax.jit
    def add(total: dict[Path, Array], params: PyTree, *batch: Any) -> dict[Path, Array]:
        grads = paths.flatten(jax.grad(loss)(params, *batch))
        return {path: total[path] + jnp.square(grads[path].astype(total[path].dtype)) for path in selected}

    leaves = paths.flatten(params)
    dtypes = {path: jnp.promote_types(leaves[path].dtype, jnp.float32) for path in selected}
    total = {path: jnp.zeros(leaves[path].shape, dtypes[path]) for path in selected}
    count = 0
    for batch in batches:
        total, count = add(total, params, *as_inputs(batch)), count + 1
    if not count:
        raise ValueError("squared_gradients needs at least one batch; got none.")
    return {path: value / count for path, value in total.items()}


@checked
def fisher_weighted(
    fisher: Mapping[Path, Array], *, method: Svd = Svd(), select: Select = paths.matrices, damping: float = 1e-6
) -> Method:
    """Return a method that weighs every row by the Fisher information of its weights: ``min ||D (W - u v)||``.

    ``D = diag(sqrt(sum_j F_ij))``: the second-order change of the loss, all weights of a row held to be as important as
    their mean. At no rank is the weighted error above plain SVD's.

    Args:
      fisher: by path, an array of the leaf's shape, from `squared_gradients`; leaves without one are refused.
      method: how a leaf is read as a matrix, and which axes are stacked.
      select: those of `fisher` that are used.
      damping: added to the information of each row, times the mean of all: rows without any are cut as plain SVD does.

    Raises:
      ValueError: for a damping below 0, information that is negative or not finite, or a selector that matches nothing.

    Example:
      >>> method = fisher_weighted({"w": jnp.array([[9.0, 9.0], [1.0, 1.0]])})
      >>> method.at("w").factorize(jnp.diag(jnp.array([1.0, 2.0])), 1).unpack().round(3).tolist()
      [[1.0, 0.0], [0.0, 0.0]]

    Source: Hsu et al. 2022, "Language model compression with weighted low-rank factorization", eq. 5 to 7.
    """
    if not damping >= 0:
        raise ValueError(f"fisher_weighted: damping must be 0 or more; got {damping}.")
    methods: dict[Path, Method] = {}
    for path, information in paths.select(dict(fisher), select).items():
        if not bool(jnp.all(jnp.isfinite(information) & (information >= 0))):
            raise ValueError(f"fisher_weighted: the information of {path} is negative or not finite; collect it again.")
        why = method.refusal(tuple(information.shape))
        if why is not None:
            methods[path] = Refused(reason=why)
            continue
        rows = jnp.sum(method.matrix(information), axis=-1)
        mean = jnp.mean(rows, axis=-1, keepdims=True)
        root = jnp.sqrt(rows + jnp.where(mean > 0, damping * mean, 1.0))
        methods[path] = WeightedSvd(root=root, rows=method.rows, stacked=method.stacked)
    return ByPath(methods=methods, missing="Fisher information")
