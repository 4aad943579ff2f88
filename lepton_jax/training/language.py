"""Language models in training: windows of a text, the loss of the next token, and its entropy on other text."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.training.classification import cross_entropy
from lepton_jax.training.step import LossFn, Metrics

Logits = Callable[..., Any]
"""``(variables, tokens[B, L]) -> logits[B, L, vocabulary]``."""


@checked
def windows(tokens: Any, length: int) -> np.ndarray:
    """Cut tokens into as many windows ``[N, length + 1]`` as there are; a window's last token is the next one's first.

    Args:
      tokens: integers ``[T]``.
      length: tokens that a window predicts, 1 or more.

    Returns:
      of the tokens' dtype, ``[N, length + 1]``.

    Raises:
      ValueError: for tokens that are too few for one window, or have not one axis.

    Example:
      >>> windows(np.arange(6), 2).tolist()
      [[0, 1, 2], [2, 3, 4]]
    """
    check_whole("windows: length", length, 1)
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) <= length:
        raise ValueError(f"windows: needs more than {length} tokens along one axis; got the shape {tokens.shape}.")
    count = (len(tokens) - 1) // length
    return tokens[np.arange(count)[:, None] * length + np.arange(length + 1)[None]]


@checked
def next_token_loss(apply: Logits) -> LossFn:
    """Make the loss of a decoder for `make_train_step`: the mean cross entropy of each next token.

    Args:
      apply: ``apply({"params": params}, tokens) -> logits``.

    Returns:
      A `LossFn`; batches are tokens ``[B, L + 1]``.

    Example:
      >>> loss_fn = next_token_loss(lambda variables, tokens: jnp.zeros((*tokens.shape, 4)))
      >>> loss_fn({}, {}, jnp.zeros((2, 3), jnp.int32), jax.random.key(0))[0]
      Array(1.3862944, dtype=float32)
    """

    def loss_fn(params: PyTree, model_state: PyTree, batch: Array, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        return jnp.mean(cross_entropy(apply({"params": params}, batch[:, :-1]), batch[:, 1:])), (model_state, {})

    return loss_fn


@checked
def next_token_entropy(apply: Logits, variables: PyTree, rows: Any, *, batch_size: int = 32) -> float:
    """Return the mean cross entropy of each next token, in nats; the perplexity is ``exp`` of it.

    Args:
      apply: ``apply(variables, tokens) -> logits``; under `lepton_jax.native.packed` the variables may have packed leaves.
      variables: of the model.
      rows: integers ``[N, L + 1]``, from `windows`; a token is predicted from those before it in its own row.
      batch_size: rows a call.

    Raises:
      ValueError: for no row, or rows of one token.

    Example:
      >>> entropy = next_token_entropy(lambda variables, tokens: jnp.zeros((*tokens.shape, 4)), {}, np.zeros((3, 5), int))
      >>> round(float(np.exp(entropy)), 3)
      4.0
    """
    check_whole("next_token_entropy: batch_size", batch_size, 1)
    rows = np.asarray(rows)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] < 2:
        raise ValueError(f"next_token_entropy: needs rows of tokens [N, L + 1], one or more of each; got {rows.shape}.")
    sums = 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0)))
        sums += float(_total(apply, variables, padded, jnp.int32(len(batch))))
    return sums / (len(rows) * (rows.shape[1] - 1))


@partial(jax.jit, static_argnums=0)
def _total(apply: Logits, variables: PyTree, batch: Array, count: Array) -> Array:
    losses = jnp.sum(cross_entropy(apply(variables, batch[:, :-1]), batch[:, 1:]), axis=1)
    return jnp.sum(jnp.where(jnp.arange(len(batch)) < count, losses, 0))
