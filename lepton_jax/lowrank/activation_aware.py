"""Factors whose outputs, on calibration data, are the nearest: whitened with the covariance of the inputs."""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path
from lepton_jax.graph.layout import Layout
from lepton_jax.graph.moments import Moments
from lepton_jax.lowrank.method import ByPath, Method, Refused
from lepton_jax.lowrank.weighted import WeightedSvd


class SingularCovarianceWarning(UserWarning):
    """Calibration data left some directions of a layer's inputs unseen."""


class Covariance(NamedTuple):
    """How much calibration data said of a layer's inputs.

    Attributes:
      inputs: of the layer.
      rank: of the covariance, in the precision it has; the least of the stacked layers'.
      rows: how many examples, positions or patches there were; the least of the stacked layers'.
      damping: what was added to its diagonal, times its mean.
    """

    inputs: int
    rank: int
    rows: int
    damping: float

    @property
    def is_singular(self) -> bool:
        """Whether a direction of the inputs was never seen."""
        return self.rank < self.inputs


class ActivationAware(NamedTuple):
    """What `activation_aware` returns.

    Attributes:
      method: for `low_rank` and the rules of ranks.
      covariances: what was known of every layer's inputs.
    """

    method: Method
    covariances: dict[Path, Covariance]


@checked
def activation_aware(moments: Mapping[Path, Moments], *, damping: float = 1e-5) -> ActivationAware:
    """Return a method that cuts every layer where its outputs change least: ``min ||X (W - u v)||``.

    With ``root^T root = X^T X + damping * mean(diag X^T X) * I``, the singular value decomposition of ``root W`` is cut. The
    error of the outputs on the calibration data is at no rank above plain SVD's: of two minimisers of a sum of two errors, the
    one of the whole sum has the less of the first where the other has the least of the second. Directions that the data
    leaves unseen fall back to plain SVD by the damping, and are reported.

    Args:
      moments: by path, from `second_moments`: ``dict(second_moments(apply, variables, batches))``. Stacked layers and kernels
        of several axes are read as the graph uses them; leaves without moments are refused.
      damping: times the mean of the diagonal.

    Raises:
      ValueError: for a damping that is not positive, moments that are not finite, or diagonal ones.

    Warns:
      SingularCovarianceWarning: with every layer whose covariance is singular.

    Example:
      >>> from lepton_jax.graph.moments import second_moments
      >>> weights, batch = {"w": jnp.eye(2)}, jnp.array([[9.0, 1.0], [-9.0, 1.0]])
      >>> found = activation_aware(dict(second_moments(lambda v, x: x @ v["w"], weights, [batch])))
      >>> found.covariances["w"].rank, jnp.abs(found.method.at("w").factorize(weights["w"], 1).unpack()).round(4).tolist()
      (2, [[1.0, 0.0], [0.0, 0.0]])

    Source: Wang et al. 2024, "SVD-LLM: truncation-aware singular value decomposition", section 3.1; by a symmetric eigenvalue
    decomposition instead of Cholesky's, and without its inverse (see `WeightedSvd`).
    """
    if not damping > 0:
        raise ValueError(f"activation_aware: damping must be above 0; got {damping}.")
    methods: dict[Path, Method] = {}
    covariances = {}
    for path, found in moments.items():
        stacked, inputs = len(found.layout.stacked), found.layout.index.shape[0]
        if found.second.ndim != stacked + 2 or not bool(jnp.all(jnp.isfinite(found.second))):
            kind = "only a diagonal" if found.second.ndim != stacked + 2 else "not finite"
            raise ValueError(f"activation_aware: the second moments of {path} are {kind}; collect them again.")
        root, rank = _root(found.second, damping)
        covariances[path] = Covariance(inputs, rank, int(np.min(found.rows)), damping)
        methods[path] = _method(found.layout, root)
    unseen = [f"{path}: rank {c.rank} of {c.inputs} inputs, {c.rows} rows" for path, c in covariances.items() if c.is_singular]
    if unseen:
        warnings.warn(
            f"The covariance of the inputs is singular for {len(unseen)} layers ({'; '.join(unseen)}). It is damped by "
            f"{damping:g} of its mean diagonal: what was not seen is cut as plain SVD does. Give more calibration data.",
            SingularCovarianceWarning,
            stacklevel=2,
        )
    return ActivationAware(ByPath(methods=methods, missing="second moments of its inputs"), covariances)


def _root(second: Array, damping: float) -> tuple[Array, int]:
    """A root of the damped matrices (*stack, n, n), and the least rank of them undamped."""
    n = second.shape[-1]
    diagonal = jnp.mean(jnp.diagonal(second, axis1=-2, axis2=-1), axis=-1)
    values, vectors = jnp.linalg.eigh(second)
    tolerance = n * jnp.finfo(values.dtype).eps * values[..., -1:]
    rank = int(np.min(np.sum(np.asarray(values > tolerance), axis=-1)))
    # Inputs that were always zero leave nothing to scale by.
    added = damping * jnp.where(diagonal > 0, diagonal, 1.0)[..., None]
    root = jnp.sqrt(jnp.maximum(values, 0) + added)
    return root[..., :, None] * jnp.swapaxes(vectors, -1, -2), rank


def _method(layout: Layout, root: Array) -> Method:
    """The method for a leaf that is used as a matrix, or a stack of them, in this layout."""
    sides, stacked = layout.sides, len(layout.stacked)
    shape = layout.shape[stacked:]
    if sides is not None:
        rows = layout.outputs if sides.turned else layout.inputs
        cuts = [cut for cut in range(1, len(shape)) if math.prod(shape[:cut]) == rows]
        if cuts:
            root = root[..., np.argsort(sides.inputs)]  # in the order in which the leaf has the inputs
            return WeightedSvd(root=root, columns=sides.turned, rows=cuts[0 if sides.turned else -1], stacked=stacked)
    return Refused(reason="is used as no matrix of its leading axes by the others, nor as that transposed")
