"""Losses on logits: soft targets, the same over the largest classes or over tokens, and a teacher made of the labels alone."""

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_classes, check_logits, check_rank, check_same, log_total, softened


@checked
def soft_targets(student_logits: Array, teacher_logits: Array, temperature: float | Array = 1.0) -> Array:
    """Return each example's divergence of the student's softened probabilities from the teacher's.

    ``T**2 * KL(softmax(t / T) || softmax(s / T))``. The square keeps the gradient's size the same for every temperature.
    It is 0, and so is its gradient, where both have the same probabilities.

    Args:
      student_logits: ``[..., C]``, any floating dtype; computed in float32 at least.
      teacher_logits: the same shape.
      temperature: T > 0.

    Returns:
      float32 ``[...]``.

    Raises:
      ValueError: for shapes that differ, or a temperature that is not positive.

    Example:
      >>> round(float(soft_targets(jnp.array([0.0, 0.0]), jnp.array([0.0, jnp.log(3.0)]))), 4)
      0.1308

    Source: Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", section 2. Deviation: the divergence
    instead of the cross entropy, which differs by the teacher's entropy, a constant, so that the least value is 0.
    """
    check_logits("soft_targets", temperature, student_logits, teacher_logits)
    return divergence(softened(teacher_logits, temperature), softened(student_logits, temperature)) * temperature**2


def divergence(log_p: Array, log_q: Array) -> Array:
    """Return ``KL(p || q)`` along the last axis from log-probabilities; a class of probability 0 in p counts nothing.

    Example:
      >>> divergence(jnp.array([-jnp.inf, 0.0]), jnp.log(jnp.array([0.5, 0.5])))
      Array(0.6931472, dtype=float32)
    """
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (jnp.where(p > 0, log_p, 0) - log_q), 0), axis=-1)


@checked
def top_k_soft_targets(student_logits: Array, teacher_logits: Array, temperature: float | Array = 1.0, *, k: int = 5) -> Array:
    """Return each example's `soft_targets` over the teacher's k largest classes, with all others as one more class.

    ``T**2 * KL`` between ``(p_1, ..., p_k, 1 - sum p)`` of both, at the classes where the teacher's logits are largest. Only
    k logits and one sum have to be kept of the teacher. It is at most `soft_targets`, and equal to it for k = C.

    Args:
      student_logits: ``[..., C]``, any floating dtype; computed in float32 at least.
      teacher_logits: the same shape.
      temperature: T > 0.
      k: from 1 to C.

    Returns:
      float32 ``[...]``.

    Raises:
      ValueError: for shapes that differ, a temperature that is not positive, or k out of range.

    Example:
      >>> s, t = jnp.array([0.0, 0.0, 0.0]), jnp.array([3.0, 1.0, 1.0])
      >>> bool(jnp.isclose(top_k_soft_targets(s, t, k=1), soft_targets(s, t)))  # the others are equally likely to both
      True

    Source: X. Tan et al. 2019, "Multilingual neural machine translation with knowledge distillation", top-K distillation.
    Deviation: they scale the k probabilities to sum to 1; here the rest is a class, so that the teacher's mass outside the k is
    learned too and the loss is 0 at equality.
    """
    check_logits("top_k_soft_targets", temperature, student_logits, teacher_logits)
    check_whole("top_k_soft_targets: k", k, 1, jnp.shape(teacher_logits)[-1])
    if k == jnp.shape(teacher_logits)[-1]:
        return soft_targets(student_logits, teacher_logits, temperature)
    chosen = jax.lax.top_k(teacher_logits, k)[1]
    outside = jnp.ones(jnp.shape(teacher_logits), bool)
    outside = jnp.put_along_axis(outside, chosen, False, axis=-1, inplace=False)

    def coarse(logits: Array) -> Array:
        logs = softened(logits, temperature)
        rest = log_total(logs, outside)
        return jnp.concatenate([jnp.take_along_axis(logs, chosen, axis=-1), rest[..., None]], axis=-1)

    return divergence(coarse(teacher_logits), coarse(student_logits)) * temperature**2


@checked
def teacher_free(student_logits: Array, labels: Array, temperature: float | Array = 20.0, *, confidence: float = 0.99) -> Array:
    """Return each example's `soft_targets` against a virtual teacher that is right with a fixed confidence.

    The teacher gives the label the probability a and every other class ``(1 - a) / (C - 1)``: label smoothing written as
    distillation, with a temperature.

    Args:
      student_logits: ``[..., C]``, C at least 2.
      labels: integers ``[...]``.
      temperature: T > 0.
      confidence: a, in (0, 1); the paper wants 0.9 or more.

    Returns:
      float32 ``[...]``.

    Raises:
      ValueError: for shapes that don't fit, a temperature that is not positive, or a confidence out of range.

    Example:
      >>> logits = jnp.log(jnp.array([0.9, 0.05, 0.05]))
      >>> bool(jnp.isclose(teacher_free(logits, jnp.array(0), 4.0, confidence=0.9), 0.0, atol=1e-6))
      True

    Source: L. Yuan et al. 2020, "Revisiting knowledge distillation via label smoothing regularization", section 5.2, eq. (8)
    and (9). Deviation: temperature squared inside, as in all losses here; the authors' code divides probabilities, not their
    logs, by the temperature and leaves the student's logits as they are.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"teacher_free: confidence must be in (0, 1); got {confidence}. The paper takes 0.99.")
    check_rank("teacher_free", 1, "logits [..., C]", student_logits)
    check_classes("teacher_free", student_logits, labels)
    classes = jnp.shape(student_logits)[-1]
    right = jax.nn.one_hot(labels, classes, dtype=bool)
    virtual = jnp.where(right, jnp.log(confidence), jnp.log((1 - confidence) / (classes - 1)))
    return soft_targets(student_logits, virtual, temperature)


@checked
def token_kl(student_logits: Array, teacher_logits: Array, mask: Array, temperature: float | Array = 1.0) -> Array:
    """Return the mean of `soft_targets` over the tokens that are no padding.

    ``sum(mask * T**2 KL) / sum(mask)``; 0 if all is padding. Logits at padding, even NaN, have no effect and get gradient 0.

    Args:
      student_logits: ``[B, L, V]``, or any ``[..., V]``.
      teacher_logits: the same shape.
      mask: bool ``[B, L]``, True where there is a token.
      temperature: T > 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for shapes that don't fit, or a temperature that is not positive.

    Example:
      >>> s, t = jnp.zeros((1, 2, 2)), jnp.array([[[0.0, jnp.log(3.0)], [jnp.nan, jnp.nan]]])
      >>> round(float(token_kl(s, t, jnp.array([[True, False]]))), 4)
      0.1308

    Source: Hinton et al. 2015, applied word by word: Y. Kim and A. Rush 2016, "Sequence-level knowledge distillation", section
    3.1. Deviation: the divergence instead of the cross entropy, and a mean instead of a sum over words.
    """
    check_rank("token_kl", 1, "logits [..., V]", student_logits, teacher_logits)
    check_same("token_kl", student_logits, teacher_logits)
    if jnp.shape(mask) != jnp.shape(student_logits)[:-1]:
        raise ValueError(f"token_kl: mask must be {jnp.shape(student_logits)[:-1]}, one a token; got {jnp.shape(mask)}.")
    mask = jnp.asarray(mask, bool)
    # Before the softmax, not after it: the gradient of what is not finite would be NaN even where it is not used.
    student, teacher = (jnp.where(mask[..., None], logits, 0) for logits in (student_logits, teacher_logits))
    losses = soft_targets(student, teacher, temperature)
    return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)
