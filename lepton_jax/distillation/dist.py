"""Distillation by correlation."""

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_batch, check_same, check_temperature, check_weights, unit, wide


@checked
def dist(
    student_logits: Array,
    teacher_logits: Array,
    temperature: float | Array = 1.0,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Array:
    """Return how little the student's probabilities correlate with the teacher's, by examples and by classes.

    ``T**2 * (inter * mean_b (1 - r(S[b, :], T[b, :])) + intra * mean_c (1 - r(S[:, c], T[:, c])))`` with Pearson's r and the
    probabilities at temperature T. r is 0 where a row or column is constant. Scale and shift of the probabilities don't matter,
    which suits a teacher much stronger than the student.

    Args:
      student_logits: ``[B, C]``, B at least 2; any floating dtype, computed in float32 at least.
      teacher_logits: the same shape.
      temperature: T > 0.
      inter: weight of the relations between classes, within an example.
      intra: weight of the relations between examples, within a class.

    Returns:
      float32 scalar, 0 at equality (unless a row or a column is constant).

    Raises:
      ValueError: for shapes that differ, a batch of one, a temperature that is not positive, or a negative weight.

    Example:
      >>> logits = jnp.array([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]])
      >>> round(float(dist(logits, logits)), 5)
      0.0

    Source: T. Huang et al. 2022, "Knowledge distillation from a stronger teacher", section 4, with the squared
    temperature of the authors' code.
    """
    check_temperature("dist", temperature)
    check_same("dist", student_logits, teacher_logits)
    check_batch("dist", student_logits, teacher_logits, 2)
    if jnp.ndim(student_logits) != 2:
        raise ValueError(f"dist: logits must be [B, C]; got shape {jnp.shape(student_logits)}.")
    check_weights("dist", inter=inter, intra=intra)
    student, teacher = (jax.nn.softmax(wide(x) / temperature) for x in (student_logits, teacher_logits))
    by_example = jnp.mean(1 - _pearson(student, teacher))
    by_class = jnp.mean(1 - _pearson(student.T, teacher.T))
    return temperature**2 * (inter * by_example + intra * by_class)


def _pearson(x: Array, y: Array) -> Array:
    """Pearson's correlation along the last axis."""
    return jnp.sum(_centred(x) * _centred(y), axis=-1)


def _centred(x: Array) -> Array:
    difference = x - jnp.mean(x, axis=-1, keepdims=True)
    # What is constant but for rounding has no direction; dividing by its norm would make one, of noise.
    noise = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    constant = jnp.max(jnp.abs(difference), axis=-1, keepdims=True) <= noise
    return unit(jnp.where(constant, 0, difference))
