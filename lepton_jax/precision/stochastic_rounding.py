"""Parameters in sixteen bits without float32 masters: rounding up or down by chance, right on average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, PyTree

_DROPPED = 16  # bits of a float32 that bfloat16 has not


@checked
def stochastic_round(x: Array, key: Array) -> Array:
    """Round float32 to bfloat16, up with the probability of its distance from below.

    bfloat16 is the upper half of float32: a random number of 16 bits is added to the lower half, which is then dropped; the
    carry rounds away from zero with probability ``lower half / 2**16``. So ``E[round(x)] = x``.

    What bfloat16 holds is kept exactly (zeros, their signs and infinities too), NaN stays NaN; what lies beyond the largest
    bfloat16 may become infinite, as in ordinary rounding.

    Args:
      x: float32, any shape.
      key: a typed random key.

    Returns:
      bfloat16 of the same shape.

    Raises:
      TypeError: for another dtype.

    Example:
      >>> stochastic_round(jnp.array([1.0, -0.0, jnp.inf, jnp.nan]), jax.random.key(0))
      Array([1, -0, inf, nan], dtype=bfloat16)

    Source: Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.1; the trick on the bits is that of
    Zamirai et al. 2020, "Revisiting bfloat16 training".
    """
    if x.dtype != jnp.float32:
        raise TypeError(f"stochastic_round: takes float32; got {x.dtype.name}. Cast it first.")
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(((bits + noise) >> _DROPPED).astype(jnp.uint16), jnp.bfloat16)
    # An infinity's lower half is 0, so nothing carries; a NaN's is anything.
    return jnp.where(jnp.isnan(x), jnp.bfloat16(jnp.nan), rounded)


class StochasticRoundingState(NamedTuple):
    """The wrapped optimiser's state, and the key of the next draws."""

    inner: Any
    key: Array


@checked
def stochastic_rounding(tx: optax.GradientTransformation, key: Array) -> optax.GradientTransformationExtraArgs:
    """Train bfloat16 parameters without float32 masters.

    The wrapped optimiser sees gradients and parameters in float32 and keeps float32 moments. The new parameter is
    ``round(param + update)``, rounded by chance: with ordinary rounding every update below half a bit (2**-9 of the weight)
    would be lost. The update that comes out is float32, and such that ``optax.apply_updates`` gives that parameter.

    Float32 masters need no wrapper: keep the parameters in float32 and compute in bfloat16 (`autocast`, `cast`).

    Args:
      tx: any optimiser.
      key: a typed random key; it is kept in the state.

    Returns:
      An optax transformation. bfloat16 leaves are treated as said, others as `tx` treats them.

    Raises:
      TypeError: at init if no leaf is bfloat16; at an update without parameters.

    Example:
      >>> params = {"w": jnp.full(2, 1.0, jnp.bfloat16)}
      >>> tx = stochastic_rounding(optax.sgd(1.0), jax.random.key(0))
      >>> updates, state = tx.update({"w": jnp.full(2, 0.5, jnp.bfloat16)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"]
      Array([0.5, 0.5], dtype=bfloat16)

    Source: Zamirai et al. 2020, "Revisiting bfloat16 training", algorithm 1.
    """
    wrapped = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> StochasticRoundingState:
        with collect("stochastic_rounding", TypeError) as problems:
            if not any(_is_narrow(leaf) for leaf in jax.tree.leaves(params)):
                found = ", ".join(f"{path} ({leaf.dtype.name})" for path, leaf in paths.flatten(params).items())
                problems.append(f"a bfloat16 parameter is required; got {found or 'none'}. Policy.masters makes them so")
        return StochasticRoundingState(wrapped.init(_widened(params)), key)

    def update(
        updates: PyTree, state: StochasticRoundingState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, StochasticRoundingState]:
        if params is None:
            raise TypeError("stochastic_rounding: update needs the parameters: tx.update(grads, state, params).")
        wide = _widened(params)
        updates, inner = wrapped.update(_widened(updates), state.inner, wide, **extra)
        following, draw = jax.random.split(state.key)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.tree.unflatten(tree, list(jax.random.split(draw, len(leaves))))

        def settle(param: Array, before: Array, change: Array, key: Array) -> Array:
            if not _is_narrow(param):
                return change
            # Where the new value is tiny beside the old one, float32 holds their difference to 2**-24 of the old one.
            return stochastic_round(before + change, key).astype(jnp.float32) - before

        return jax.tree.map(settle, params, wide, updates, keys), StochasticRoundingState(inner, following)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_narrow(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == jnp.bfloat16


def _widened(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf, tree)
