"""Text of a decoder, token by token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.packed import unpack
from lepton_jax.core.typing import Array, PyTree


@checked
def generate(
    apply: Callable[..., Any],
    variables: PyTree,
    tokens: Array,
    steps: int,
    *,
    key: Array | None = None,
    temperature: float = 1.0,
) -> Array:
    """Continue texts by tokens that a decoder predicts; each is computed once, after a cache of those before it.

    Without a key, the most likely token each time; with one, a token drawn from ``softmax(logits / temperature)``.

    Args:
      apply: of a `Transformer`: ``apply(variables, tokens, cache, room)``.
      variables: its variables, any leaf of which may be packed.
      tokens: integers ``[B, L]``, L 1 or more.
      steps: how many tokens to add.
      key: a random key.
      temperature: positive; small for likely tokens.

    Returns:
      int32 ``[B, steps]``.

    Raises:
      ValueError: for a temperature that is not positive.

    Example:
      >>> from lepton_jax.models import Transformer
      >>> model = Transformer(vocabulary=11, depth=1, width=8, heads=2, mlp=16, position="rotary")
      >>> prompt = jnp.array([[1, 2, 3]])
      >>> generate(model.apply, model.init(jax.random.key(0), prompt), prompt, 4).shape
      (1, 4)
    """
    check_whole("generate: steps", steps, 1)
    if not temperature > 0:
        raise ValueError(f"generate: temperature must be positive; got {temperature}. For the most likely token, give no key.")

    @jax.jit
    def run(variables: PyTree, tokens: Array, key: Array | None) -> Array:
        seen = unpack(variables)

        def chosen(logits: Array, key: Array | None) -> Array:
            last = logits[:, -1].astype(jnp.float32)
            drawn = jnp.argmax(last, -1) if key is None else jax.random.categorical(key, last / temperature)
            return drawn.astype(jnp.int32)

        def step(state: Any, key: Array | None) -> Any:
            token, cache = state
            logits, cache = apply(seen, token[:, None], cache)
            return (chosen(logits, key), cache), token

        keys = None if key is None else jax.random.split(key, steps)
        logits, cache = apply(seen, tokens, None, tokens.shape[1] + steps)
        first = chosen(logits, None if keys is None else keys[0])
        rest = None if keys is None else keys[1:]
        (last, _), made = jax.lax.scan(step, (first, cache), rest, length=steps - 1)
        return jnp.concatenate([made.T, last[:, None]], axis=1)

    return run(variables, tokens, key)
