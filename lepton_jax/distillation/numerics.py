"""What the losses share: checks, float32 arithmetic, and norms whose gradient is finite at zero."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.errors import is_traced
from lepton_jax.core.typing import Array


def wide(x: Any) -> Array:
    """Return an array in float32, or in float64 if it is that already; losses are never computed in less.

    Example:
      >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_temperature(name: str, temperature: float | Array) -> None:
    """Raise unless a temperature is positive and finite; what is traced passes.

    Example:
      >>> check_temperature("soft_targets", 0)
      Traceback (most recent call last):
      ...
      ValueError: soft_targets: temperature must be positive and finite; got 0. 1 leaves the logits as they are.
    """
    if not is_traced(temperature) and not 0 < float(temperature) < math.inf:
        raise ValueError(
            f"{name}: temperature must be positive and finite; got {temperature}. 1 leaves the logits as they are."
        )


def check_same(name: str, student: Any, teacher: Any, what: str = "shape") -> None:
    """Raise unless student and teacher have the same shape.

    Example:
      >>> check_same("hints", jnp.ones((2, 3)), jnp.ones((2, 4)))
      Traceback (most recent call last):
      ...
      ValueError: hints: student and teacher must have the same shape; got (2, 3) and (2, 4).
    """
    if jnp.shape(student) != jnp.shape(teacher):
        raise ValueError(
            f"{name}: student and teacher must have the same {what}; got {jnp.shape(student)} and {jnp.shape(teacher)}."
        )


def check_batch(name: str, student: Any, teacher: Any, least: int) -> None:
    """Raise unless both are of the same examples, `least` of them or more.

    Example:
      >>> check_batch("dist", jnp.ones((1, 3)), jnp.ones((1, 3)), 2)
      Traceback (most recent call last):
      ...
      ValueError: dist: compares examples with one another and needs a batch of 2 or more; got shapes (1, 3) and (1, 3).
    """
    shapes = f"got shapes {jnp.shape(student)} and {jnp.shape(teacher)}."
    if jnp.ndim(student) < 2 or jnp.ndim(teacher) < 2 or jnp.shape(student)[0] != jnp.shape(teacher)[0]:
        raise ValueError(f"{name}: student and teacher must be [B, ...] with the same B; {shapes}")
    if jnp.shape(student)[0] < least:
        raise ValueError(f"{name}: compares examples with one another and needs a batch of {least} or more; {shapes}")


def check_rank(name: str, rank: int, layout: str, *arrays: Any) -> None:
    """Raise unless every array has `rank` axes or more.

    Example:
      >>> check_rank("nst", 3, "[B, ..., C]", jnp.ones((2, 4)))
      Traceback (most recent call last):
      ...
      ValueError: nst: features must be [B, ..., C], 3 axes or more; got shape (2, 4).
    """
    for array in arrays:
        if jnp.ndim(array) < rank:
            raise ValueError(f"{name}: features must be {layout}, {rank} axes or more; got shape {jnp.shape(array)}.")


def check_logits(name: str, temperature: float | Array, *logits: Any) -> None:
    """Raise unless all are logits ``[..., C]`` of one shape, and the temperature is positive.

    Example:
      >>> check_logits("soft_targets", 1.0, jnp.ones((2, 3)), jnp.ones((2, 3)))
    """
    check_temperature(name, temperature)
    check_rank(name, 1, "logits [..., C]", *logits)
    check_same(name, logits[0], logits[-1])


def check_classes(name: str, logits: Any, labels: Any) -> None:
    """Raise unless there are two classes or more, and a label for each example.

    Example:
      >>> check_classes("dkd", jnp.ones((2, 3)), jnp.zeros(2, int))
    """
    *batch, classes = jnp.shape(logits)
    if classes < 2 or jnp.shape(labels) != tuple(batch):
        raise ValueError(
            f"{name}: needs logits [..., C] of 2 classes or more and labels [...]; got {jnp.shape(logits)} and "
            f"{jnp.shape(labels)}."
        )


def check_weights(name: str, **weights: float) -> None:
    """Raise unless all are 0 or more.

    Example:
      >>> check_weights("dkd", alpha=1.0, beta=-1.0)
      Traceback (most recent call last):
      ...
      ValueError: dkd: alpha and beta must be 0 or more; got 1.0 and -1.0.
    """
    if not all(weight >= 0 for weight in weights.values()):
        raise ValueError(f"{name}: {' and '.join(weights)} must be 0 or more; got {' and '.join(map(str, weights.values()))}.")


def softened(logits: Any, temperature: float | Array) -> Array:
    """Return the log-probabilities at a temperature, in float32 at least.

    Example:
      >>> softened(jnp.zeros((1, 2)), 4.0).round(3).tolist()
      [[-0.6930000185966492, -0.6930000185966492]]
    """
    return jax.nn.log_softmax(wide(logits) / temperature)


def log_total(logs: Array, where: Array) -> Array:
    """Return the logarithm of the total of some classes along the last axis; ``-inf``, and gradient 0, if all are impossible.

    Args:
      logs: log-probabilities, ``[..., C]``; ``-inf`` for what is impossible.
      where: bool ``[..., C]``, the classes.

    Example:
      >>> logs = jnp.log(jnp.array([[0.5, 0.25, 0.25, 0.0]]))
      >>> log_total(logs, jnp.array([[False, True, True, False]])), log_total(logs, jnp.array([[False, False, False, True]]))
      (Array([-0.6931472], dtype=float32), Array([-inf], dtype=float32))
    """
    possible = jnp.any(where & (logs > -jnp.inf), axis=-1)
    total = jax.nn.logsumexp(jnp.where(possible[..., None], logs, 0), axis=-1, where=where)
    return jnp.where(possible, total, -jnp.inf)


def safe_sqrt(squares: Array) -> Array:
    """Return the square root, with gradient 0 (not infinity) where the argument is 0.

    Example:
      >>> jax.grad(safe_sqrt)(0.0).item()
      0.0
    """
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def unit(x: Array) -> Array:
    """Divide by the Euclidean norm along the last axis; the zero vector stays zero, and so does its gradient.

    Example:
      >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm = safe_sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def rows(features: Any) -> Array:
    """Flatten ``[B, ...]`` to ``[B, D]`` in float32.

    Example:
      >>> rows(jnp.ones((2, 3, 4))).shape
      (2, 12)
    """
    x = wide(features)
    return x.reshape(x.shape[0], -1)
