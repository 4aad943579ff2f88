"""Beam search: the likeliest of many continuations, token by token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.models.tokens import PADDING

Step = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]


@checked
def beam_search(
    step: Step, cache: PyTree, *, batch: int, begin: int, end: int, steps: int, beams: int = 4, power: float = 0.6
) -> Array:
    """Return the text of the largest ``log p / ((5 + length) / 6)^power`` among those that a beam keeps.

    Each step every text of the beam is continued by every token; the `beams` likeliest of them all are kept. A text that has
    ended stays as it is. The search stops when all have ended, or after `steps` tokens.

    Args:
      step: ``(tokens [batch, beams], cache, number) -> (logits [batch, beams, V], cache)`` of the last token of each text, its
        number from 0; traced once.
      cache: what `step` keeps; leaves have a first axis ``batch * beams``, and are put in a new order with the texts.
      batch: how many searches at once.
      begin: the token that every text begins with; not returned.
      end: the token that ends a text.
      steps: the most tokens.
      beams: texts that are kept; 1 takes the likeliest token each time.
      power: of the length; 0 compares sums of logarithms, which favours short texts.

    Returns:
      int32 ``[batch, steps]``: with the end, then 0.

    Example:
      >>> always = lambda tokens, cache, number: (jnp.zeros((*tokens.shape, 4)).at[..., 2 + number].set(9.0), cache)
      >>> beam_search(always, (), batch=1, begin=1, end=3, steps=4, beams=2).tolist()
      [[2, 3, 0, 0]]

    Source: Y. Wu et al., Google's neural machine translation system, 2016, section 7.
    """
    for name, value in (("batch", batch), ("steps", steps), ("beams", beams)):
        check_whole(f"beam_search: {name}", value, 1)

    def grow(state: Any) -> Any:
        number, texts, scores, ended, last, cache = state
        logits, cache = step(last, cache, number)
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        size = logs.shape[-1]
        closed = jnp.where(jnp.arange(size) == PADDING, 0.0, -jnp.inf)
        logs = jnp.where(ended[..., None], closed, jnp.where(jnp.arange(size) == PADDING, -jnp.inf, logs))
        scores, chosen = jax.lax.top_k((scores[..., None] + logs).reshape(batch, beams * size), beams)
        parent, token = chosen // size, (chosen % size).astype(jnp.int32)
        texts = jnp.take_along_axis(texts, parent[..., None], axis=1).at[:, :, number].set(token)
        ended = jnp.take_along_axis(ended, parent, axis=1) | (token == end)
        flat = (parent + beams * jnp.arange(batch)[:, None]).reshape(-1)
        return number + 1, texts, scores, ended, token, jax.tree.map(lambda leaf: leaf[flat], cache)

    def going(state: Any) -> Array:
        return (state[0] < steps) & ~jnp.all(state[3])

    # All begin alike: only the first text of a beam may be continued in the first step.
    scores = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), (batch, 1))
    texts, ended = jnp.zeros((batch, beams, steps), jnp.int32), jnp.zeros((batch, beams), bool)
    first = (jnp.int32(0), texts, scores, ended, jnp.full((batch, beams), begin, jnp.int32), cache)
    _, texts, scores, *_ = jax.lax.while_loop(going, grow, first)
    lengths = jnp.sum(texts != PADDING, axis=-1)
    best = jnp.argmax(scores / ((5 + lengths) / 6) ** power, axis=-1)
    return jnp.take_along_axis(texts, best[:, None, None], axis=1)[:, 0]
