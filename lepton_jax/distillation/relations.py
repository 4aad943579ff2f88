"""Losses on relations between the examples of a batch, whatever the widths: distances, angles, similarities."""

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_batch, rows, safe_sqrt, unit


@checked
def rkd_distance(student: Array, teacher: Array, *, delta: float = 1.0) -> Array:
    """Return how far the student's relative distances between examples are from the teacher's.

    ``mean_{i != j} huber(d_s(i, j) - d_t(i, j))`` with Euclidean distances divided by their mean over the pairs. The gradient
    is finite where points coincide: a distance of 0 has gradient 0.

    Args:
      student: ``[B, ...]``, B at least 2; flattened, computed in float32 at least. It takes memory for B * B * D numbers.
      teacher: ``[B, ...]``; may be of another width.
      delta: where the Huber loss turns from square to linear, more than 0.

    Returns:
      float32 scalar, 0 at equality and for any scaled, turned or shifted copy.

    Raises:
      ValueError: for batches that differ or are too small, or a delta that is not positive.

    Example:
      >>> s, t = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [5.0]])
      >>> round(rkd_distance(s, t).item(), 4)  # 3/4, 3/4, 3/2 against 3/10, 12/10, 15/10
      0.0675

    Source: Park et al. 2019, "Relational knowledge distillation", section 3.2.1. Deviation: mean instead of sum over pairs.
    """
    s, t = (_relative(points) for points in _points("rkd_distance", student, teacher, 2, delta))
    pairs = s.shape[0] * (s.shape[0] - 1)
    return jnp.sum(huber(s - t, delta)) / pairs


def _relative(points: Array) -> Array:
    # Not by |x|**2 + |y|**2 - 2 x.y: points that coincide must have a distance of exactly 0.
    distances = safe_sqrt(jnp.sum(jnp.square(points[:, None] - points[None]), axis=-1))
    pairs = points.shape[0] * (points.shape[0] - 1)
    mean = jnp.sum(distances) / pairs
    return distances / jnp.where(mean > 0, mean, 1)


@checked
def rkd_angle(student: Array, teacher: Array, *, delta: float = 1.0) -> Array:
    """Return how far the angles between triples of the student's examples are from the teacher's.

    ``mean_{i, j, k distinct} huber(cos_s(i, j, k) - cos_t(i, j, k))`` with the angle at j between the directions to i and k. A
    direction between points that coincide is zero, and so is its gradient.

    Args:
      student: ``[B, ...]``, B at least 3; flattened, computed in float32 at least. It takes memory for B * B * (B + D) numbers.
      teacher: ``[B, ...]``; may be of another width.
      delta: where the Huber loss turns from square to linear, more than 0.

    Returns:
      float32 scalar, 0 at equality and for any scaled, turned or shifted copy.

    Raises:
      ValueError: for batches that differ or are too small, or a delta that is not positive.

    Example:
      >>> s = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> rkd_angle(s, 3 * s + 1).item() < 1e-12
      True

    Source: Park et al. 2019, "Relational knowledge distillation", section 3.2.2. Deviation: mean instead of sum over triples.
    """
    s, t = (_angles(points) for points in _points("rkd_angle", student, teacher, 3, delta))
    count = s.shape[0]
    differ = ~jnp.eye(count, dtype=bool)
    distinct = differ[:, :, None] & differ[:, None, :] & differ[None]
    losses = jnp.where(distinct, huber(s - t, delta), 0)
    return jnp.sum(losses) / (count * (count - 1) * (count - 2))


def _angles(points: Array) -> Array:
    """``[j, i, k]``: the cosine at j between the directions to i and k."""
    directions = unit(points[None] - points[:, None])
    return jnp.einsum("jid,jkd->jik", directions, directions, precision="highest")


def huber(difference: Array, delta: float) -> Array:
    """Return ``d**2 / 2`` up to delta, and ``delta * (|d| - delta / 2)`` beyond.

    Example:
      >>> huber(jnp.array([0.5, -3.0]), 1.0).tolist()
      [0.125, 2.5]
    """
    size = jnp.abs(difference)
    return jnp.where(size <= delta, jnp.square(difference) / 2, delta * (size - delta / 2))


@checked
def similarity_preserving(student: Array, teacher: Array) -> Array:
    """Return the squared difference between the batch's similarity matrices.

    ``|G_s - G_t|_F**2 / B**2`` with ``G = A A^T``, each row divided by its norm, for the flattened features A.

    Args:
      student: ``[B, ...]``, B at least 2; computed in float32 at least.
      teacher: ``[B, ...]``; may be of another width.

    Returns:
      float32 scalar, 0 at equality and for any scaled or turned copy.

    Raises:
      ValueError: for batches that differ or are too small.

    Example:
      >>> s, t = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
      >>> round(similarity_preserving(s, t).item(), 4)  # rows (1, 0), (0, 1) against (1, 1) / sqrt 2 twice
      0.2929

    Source: Tung and Mori 2019, "Similarity-preserving knowledge distillation", eq. (1) to (4).
    """
    both = _points("similarity_preserving", student, teacher, 2)
    s, t = (unit(jnp.matmul(x, x.T, precision="highest")) for x in both)
    return jnp.mean(jnp.square(s - t))


@checked
def pkt(student: Array, teacher: Array) -> Array:
    """Return the divergence of the student's neighbourhood probabilities from the teacher's, averaged over examples.

    ``mean_i sum_{j != i} p(j|i) log(p(j|i) / q(j|i))`` with ``p(j|i) = K(i, j) / sum_{k != i} K(i, k)`` of the teacher, q of
    the student and ``K = (cosine + 1) / 2``.

    Args:
      student: ``[B, ...]``, B at least 2; flattened, computed in float32 at least.
      teacher: ``[B, ...]``; may be of another width.

    Returns:
      float32 scalar, 0 at equality and for any scaled or turned copy.

    Raises:
      ValueError: for batches that differ or are too small.

    Example:
      >>> s = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
      >>> abs(pkt(s, 2 * s).item()) < 1e-6
      True

    Source: Passalis and Tefas 2018, "Learning deep representations with probabilistic knowledge transfer", section 3, cosine
    kernel. Deviation: mean instead of sum over examples.
    """
    log_q, log_p = (_neighbours(points) for points in _points("pkt", student, teacher, 2))
    off = ~jnp.eye(log_p.shape[0], dtype=bool)
    return jnp.mean(jnp.sum(jnp.where(off, jnp.exp(log_p) * (log_p - log_q), 0), axis=1))


def _neighbours(points: Array) -> Array:
    """Log-probabilities ``[i, j]``; the diagonal means nothing."""
    directions = unit(points)
    kernel = (jnp.matmul(directions, directions.T, precision="highest") + 1) / 2
    # Opposite points have a kernel of 0; this keeps its log, and the gradient of it, finite.
    kernel = jnp.maximum(kernel, jnp.finfo(kernel.dtype).eps)
    off = ~jnp.eye(kernel.shape[0], dtype=bool)
    return jnp.log(kernel) - jnp.log(jnp.sum(jnp.where(off, kernel, 0), axis=1, keepdims=True))


def _points(name: str, student: Array, teacher: Array, least: int, delta: float = 1.0) -> tuple[Array, Array]:
    """Both as one row an example, settings and shapes checked."""
    if not delta > 0:
        raise ValueError(f"{name}: delta must be positive; got {delta}. The authors take 1.")
    check_batch(name, student, teacher, least)
    return rows(student), rows(teacher)
