"""How far a model's outputs move when one leaf is another: compiled once for all leaves and all changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.trace import Apply

Divergence = Literal["kl", "error"]


def is_single(logits: Array) -> bool:
    """Whether there is one logit an example: (batch,), or 1 along the last axis.

    Example:
      >>> is_single(jnp.ones(8)), is_single(jnp.ones((8, 1))), is_single(jnp.ones((8, 2)))
      (True, True, False)
    """
    return logits.ndim < 2 or logits.shape[-1] == 1


def kl(dense: Array, other: Array) -> tuple[Array, Array]:
    """Return the sum of ``KL(softmax(dense) | softmax(other))`` over examples, in nats, and how many there are.

    One logit an example, (batch,) or (..., 1), is that of a sigmoid.

    Example:
      >>> total, count = kl(jnp.zeros((2, 2)), jnp.array([[0.0, 0.0], [jnp.log(3.0), 0.0]]))
      >>> round(float(total), 4), int(count)
      (0.1438, 2)
    """
    if is_single(dense):
        dense, other = (jnp.stack([one, jnp.zeros_like(one)], -1).reshape(-1, 2) for one in (dense, other))
    logs, others = (jax.nn.log_softmax(one.astype(jnp.float32)) for one in (dense, other))
    terms = jnp.where(logs > -jnp.inf, jnp.exp(logs) * (logs - others), 0)  # what cannot be has no part in it
    return jnp.sum(terms), jnp.int32(dense[..., 0].size)


def error(dense: Array, other: Array) -> tuple[Array, Array]:
    """Return ``|other - dense|^2`` and ``|dense|^2``.

    Example:
      >>> [float(part) for part in error(jnp.array([2.0]), jnp.array([3.0]))]
      [1.0, 4.0]
    """
    dense, other = dense.astype(jnp.float32), other.astype(jnp.float32)
    return jnp.sum((other - dense) ** 2), jnp.sum(dense**2)


DIVERGENCES: Mapping[str, Callable[[Array, Array], tuple[Array, Array]]] = {"kl": kl, "error": error}


class Outputs:
    """The outputs of a model on batches; called with a leaf, how far they move.

    Args:
      apply: ``apply(variables, *inputs)``.
      variables: arrays.
      batches: tuples of inputs.
      divergence: "kl" or "error".

    Raises:
      ValueError: if an output is not finite, or there is none of floats.

    Example:
      >>> outputs = Outputs(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, [(jnp.eye(2),)], "error")
      >>> outputs("w", 2 * jnp.eye(2)), outputs.of({"w": jnp.eye(2)})
      (1.0, 0.0)
    """

    def __init__(self, apply: Apply, variables: PyTree, batches: Sequence[tuple[Any, ...]], divergence: Divergence) -> None:
        self.variables, self.batches, self.divergence = variables, batches, divergence
        self.floats = lambda held, *inputs: [leaf for leaf in jax.tree.leaves(apply(held, *inputs)) if paths.is_floating(leaf)]
        run = jax.jit(self.floats)
        self._dense = [run(variables, *inputs) for inputs in batches]
        if not self._dense[0]:
            raise ValueError("measure: the model must return arrays of floats; it returns none.")
        if not all(
            bool(jnp.isfinite(leaf).all() | (divergence == "kl")) & bool(~jnp.isnan(leaf).any())
            for o in self._dense
            for leaf in o
        ):
            raise ValueError("measure: the model's outputs on the batches must be finite; some are not.")

        def moved(held: PyTree, dense: list[Array], *inputs: Any) -> tuple[Array, Array]:
            each = [DIVERGENCES[divergence](one, other) for one, other in zip(dense, self.floats(held, *inputs))]
            return sum(part for part, _ in each), sum(whole for _, whole in each)  # type: ignore[return-value]

        def other(held: PyTree, dense: list[Array], *inputs: Any) -> tuple[Array, Array]:
            each = [(_answers(one), _answers(new)) for one, new in zip(dense, self.floats(held, *inputs))]
            return jnp.sum(jnp.stack([jnp.sum(a != b) for a, b in each])), jnp.int32(sum(a.size for a, _ in each))

        self._moved, self._other = jax.jit(moved), jax.jit(other)

    def of(self, variables: PyTree) -> float:
        """Return how far the outputs of other variables are."""
        each = [self._moved(variables, dense, *inputs) for dense, inputs in zip(self._dense, self.batches)]
        total, whole = (float(sum(parts)) for parts in zip(*each))
        return total / whole if whole else total

    def changed(self, variables: PyTree) -> float:
        """Return the share of the answers (the largest logit, or its sign) that are others with other variables."""
        each = [self._other(variables, dense, *inputs) for dense, inputs in zip(self._dense, self.batches)]
        wrong, all_of = (float(sum(parts)) for parts in zip(*each))
        return wrong / max(all_of, 1)

    def __call__(self, path: Path, leaf: Array) -> float:
        return self.of(paths.replace(self.variables, {path: leaf}))


def _answers(logits: Array) -> Array:
    return logits > 0 if is_single(logits) else jnp.argmax(logits, -1)
