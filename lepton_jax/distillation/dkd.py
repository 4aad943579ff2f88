"""Decoupled knowledge distillation."""

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.distillation.logits import divergence
from lepton_jax.distillation.numerics import check_classes, check_logits, check_weights, log_total, softened


@checked
def dkd(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    temperature: float | Array = 4.0,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Array:
    """Return each example's distillation loss with its two parts, target class and other classes, weighed apart.

    ``T**2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s))`` where ``b = (p_y, 1 - p_y)`` and q are the probabilities among
    the classes other than the label y, all of ``softmax(logits / T)``. With alpha = 1 and ``beta = 1 - p_y`` of the teacher it
    is `soft_targets`; here beta no longer vanishes where the teacher is sure.

    Args:
      student_logits: ``[..., C]``, C at least 2; any floating dtype, computed in float32 at least.
      teacher_logits: the same shape.
      labels: integers ``[...]``.
      temperature: T > 0.
      alpha: weight of the target class's part, 0 or more.
      beta: weight of the other classes' part, 0 or more.

    Returns:
      float32 ``[...]``. A class that the teacher makes impossible (``-inf``) counts nothing.

    Raises:
      ValueError: for shapes that don't fit, a temperature that is not positive, or a negative weight.

    Example:
      >>> s, t = jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[5.0, 1.0, 1.0]])
      >>> dkd(s, t, jnp.array([0]), alpha=0.0).item()  # the other classes are equally likely to both
      0.0

    Source: B. Zhao et al. 2022, "Decoupled knowledge distillation", eq. (7), with the squared temperature of the authors' code.
    """
    check_logits("dkd", temperature, student_logits, teacher_logits)
    check_classes("dkd", student_logits, labels)
    check_weights("dkd", alpha=alpha, beta=beta)
    target = jax.nn.one_hot(labels, jnp.shape(student_logits)[-1], dtype=bool)

    def parts(logits: Array) -> tuple[Array, Array]:
        logs = softened(logits, temperature)
        label = jnp.sum(jnp.where(target, logs, 0), axis=-1)
        others = log_total(logs, ~target)
        among = logs - jnp.where(others > -jnp.inf, others, 0)[..., None]
        # The label's own probability among the others is 0 in both; so are all, where the others are impossible.
        return jnp.stack([label, others], axis=-1), jnp.where(target, -jnp.inf, among)

    (binary_s, other_s), (binary_t, other_t) = parts(student_logits), parts(teacher_logits)
    # Where no other class is possible, how likely they are among themselves has no meaning.
    several = (binary_t[..., 1] > -jnp.inf) & (binary_s[..., 1] > -jnp.inf)
    among = jnp.where(several, divergence(other_t, other_s), 0)
    return temperature**2 * (_times(alpha, divergence(binary_t, binary_s)) + _times(beta, among))


def _times(weight: float | Array, loss: Array) -> Array:
    """The product, where a weight of 0 leaves nothing of a loss that is infinite."""
    return jnp.where(jnp.asarray(weight) > 0, weight * loss, 0)
