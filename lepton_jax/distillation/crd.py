"""Contrastive representation distillation, within a batch or against a bank of earlier embeddings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_batch, check_same, unit, wide


@checked
def crd(student: Array, teacher: Array, *, population: int, temperature: float = 0.07) -> Array:
    """Return the loss of telling which of the batch's teacher embeddings belongs to each student embedding.

    ``-mean_i [log h(i, i) + sum_{j != i} log(1 - h(i, j))]`` with ``h(i, j) = e / (e + N / M)``, ``e = exp(s_i . t_j / tau)``,
    unit vectors s and t, and the N = B - 1 others of the batch as negatives out of M examples.

    Args:
      student: ``[B, D]``, B at least 2, after its projection (adapter `Projections`); computed in float32 at least.
      teacher: ``[B, D]``, after a projection of its own.
      population: M, the size of the training set.
      temperature: tau > 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for shapes that differ, a batch of one, or settings out of range.

    Example:
      >>> crd(jnp.eye(2), jnp.eye(2), population=100) < crd(jnp.eye(2), jnp.eye(2)[::-1], population=100)
      Array(True, dtype=bool)

    Source: Tian, Krishnan, Isola 2020, "Contrastive representation distillation", section 3.1. Deviation: the negatives
    are the batch's, of all classes, instead of thousands from a memory of the data set; `crd_bank` has more.
    """
    check_batch("crd", student, teacher, 2)
    logits, count = _scores(student, teacher, temperature), jnp.shape(student)[0]
    own = jnp.eye(count, dtype=bool)
    return _nce(logits, own, count - 1, population)


class Bank(NamedTuple):
    """The teacher's last embeddings, a ring: the state of `crd_bank`.

    Attributes:
      embeddings: float32 ``[K, D]``, unit vectors.
      cursor: int32, where the next batch goes.
    """

    embeddings: Array
    cursor: Array


@checked
def bank(size: int, width: int, key: Array) -> Bank:
    """Begin a bank with random directions.

    Args:
      size: K, how many embeddings it holds; a whole multiple of the batch that is pushed.
      width: D.
      key: random key.

    Raises:
      ValueError: unless both are 1 or more.

    Example:
      >>> bank(4, 2, jax.random.key(0)).embeddings.shape
      (4, 2)
    """
    check_whole("bank: size", size, 1)
    check_whole("bank: width", width, 1)
    return Bank(unit(jax.random.normal(key, (size, width))), jnp.int32(0))


@checked
def push(memory: Bank, teacher: Array) -> Bank:
    """Put a batch of the teacher's embeddings in the place of the oldest.

    Args:
      memory: the bank.
      teacher: ``[B, D]``, B a divisor of the bank's size.

    Raises:
      ValueError: for shapes that don't fit.

    Example:
      >>> push(bank(2, 2, jax.random.key(0)), jnp.array([[0.0, 3.0]])).embeddings[0].tolist()
      [0.0, 1.0]
    """
    size, width = memory.embeddings.shape
    if jnp.ndim(teacher) != 2 or teacher.shape[1] != width or size % teacher.shape[0]:
        raise ValueError(
            f"push: a bank of {memory.embeddings.shape} takes [B, {width}] where B divides {size}; got {jnp.shape(teacher)}."
        )
    new = jax.lax.stop_gradient(unit(wide(teacher))).astype(memory.embeddings.dtype)
    embeddings = jax.lax.dynamic_update_slice(memory.embeddings, new, (memory.cursor, jnp.int32(0)))
    return Bank(embeddings, (memory.cursor + teacher.shape[0]) % size)


@checked
def crd_bank(student: Array, teacher: Array, memory: Bank, *, population: int, temperature: float = 0.07) -> Array:
    """Return the loss of telling each student embedding's teacher embedding from those of a bank.

    As `crd`, with the bank's K embeddings as negatives. Push the teacher's batch afterwards: ``push(memory, teacher)``.

    Args:
      student: ``[B, D]``, computed in float32 at least.
      teacher: ``[B, D]``.
      memory: the bank.
      population: M, the size of the training set.
      temperature: tau > 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for shapes that differ or settings out of range.

    Example:
      >>> memory = push(bank(2, 2, jax.random.key(0)), -jnp.eye(2))
      >>> crd_bank(jnp.eye(2), jnp.eye(2), memory, population=100).shape
      ()

    Source: Tian, Krishnan, Isola 2020, section 3.1. Deviation: a ring of the latest embeddings, which may hold another
    view of the same example, instead of one entry an example.
    """
    check_batch("crd_bank", student, teacher, 1)
    width = memory.embeddings.shape[1]
    if jnp.shape(teacher)[-1] != width:
        raise ValueError(f"crd_bank: the bank's embeddings have width {width}; got shape {jnp.shape(teacher)}.")
    positive = jnp.diagonal(_scores(student, teacher, temperature))[:, None]
    s, size = unit(wide(student)), memory.embeddings.shape[0]
    negative = jnp.matmul(s, memory.embeddings.T, precision="highest") / temperature
    logits = jnp.concatenate([positive, negative], axis=1)
    own = jnp.broadcast_to((jnp.arange(size + 1) == 0)[None], logits.shape)
    return _nce(logits, own, size, population)


def _scores(student: Array, teacher: Array, temperature: float) -> Array:
    """Cosines over temperature, ``[student, teacher]``."""
    if not temperature > 0:
        raise ValueError(f"crd: temperature must be positive; got {temperature}. The authors take 0.07.")
    check_same("crd", student, teacher)
    if jnp.ndim(student) != 2:
        raise ValueError(f"crd: embeddings must be [B, D]; got shape {jnp.shape(student)}. Project them first.")
    return jnp.matmul(unit(wide(student)), unit(wide(teacher)).T, precision="highest") / temperature


def _nce(scores: Array, own: Array, negatives: int, population: int) -> Array:
    check_whole("crd: population", population, 1)
    # h = e / (e + N / M) is a sigmoid of log e - log(N / M).
    logits = scores - jnp.log(negatives / population)
    losses = jnp.where(own, -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits))
    return jnp.mean(jnp.sum(losses, axis=1))
