"""Decoupled knowledge distillation."""

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.distillation.logits import divergence
from lepton_jax.distillation.numerics import check_classes, check_logits, check_weights, softened


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
      float32 ``[...]``.

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
        others = jax.nn.logsumexp(logs, axis=-1, where=~target)
        # Among the others; the label's own entry counts nothing, being 0 in both and its probability too.
        return jnp.stack([label, others], axis=-1), jnp.where(target, 0, logs - others[..., None])

    (binary_s, other_s), (binary_t, other_t) = parts(student_logits), parts(teacher_logits)
    among = jnp.sum(jnp.where(target, 0, jnp.exp(other_t) * (other_t - other_s)), axis=-1)
    return temperature**2 * (alpha * divergence(binary_t, binary_s) + beta * among)
