"""Moments of any optimiser in eight bits, block by block."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.packed import register_packed
from lepton_jax.core.typing import Array, PyTree


@register_packed("codes", "scales")
class EightBits:
    """A moment in eight bits: codes of its shape, and a scale for each block of its last axis.

    A scale is the block's largest magnitude. It is negative where the block has negative numbers, whose codes then are those
    of the signed table; else they are those of the unsigned one.

    Args:
      codes: uint8, of the moment's shape.
      scales: float32, one a block.
      block: numbers that share a scale.

    Example:
      >>> EightBits(jnp.array([0, 255], jnp.uint8), jnp.array([2.0]), 2).codes.shape
      (2,)
    """

    codes: Array
    scales: Array
    block: int


@checked
def eight_bit(
    tx: optax.GradientTransformation, *, block: int = 256, smallest: int = 4096
) -> optax.GradientTransformationExtraArgs:
    """Keep an optimiser's moments in eight bits between steps: 2.03 bytes a parameter for Adam in place of 8.

    Every floating array of the state with `smallest` numbers or more is divided into blocks along its last axis, each block by
    its largest magnitude, and rounded to the nearest of 256 numbers, which are dense near zero (from 1e-7 to 1). A step takes
    the numbers out, lets `tx` work in float32, and puts them back. Codes have the moment's shape, so a `Placement` spreads
    them as their weight.

    Args:
      tx: any optax optimiser. What looks into its state goes inside: ``eight_bit(masked_moments(optax.adam(1e-3)))``.
      block: numbers of the last axis that share a scale; a shorter axis is one block.
      smallest: arrays of fewer numbers stay as they are.

    Raises:
      ValueError: for a block or a smallest below 1.

    Example:
      >>> tx, params = eight_bit(optax.sgd(1.0, momentum=0.5), smallest=1), {"w": jnp.ones((1, 2))}
      >>> updates, state = tx.update({"w": jnp.array([[2.0, 1.0]])}, tx.init(params), params)
      >>> moment = state[0].trace["w"]
      >>> moment.codes.dtype, moment.scales.tolist(), updates["w"].tolist()
      (dtype('uint8'), [[2.0]], [[-2.0, -1.0]])

    Source: Dettmers, Lewis, Shleifer, Zettlemoyer 2022, "8-bit optimizers via block-wise quantization", sections 2.1 and 2.2.
    There blocks are of 2,048 numbers of the flat array; here of the last axis, so that they follow a sharding.
    """
    check_whole("eight_bit: block", block, 1)
    check_whole("eight_bit: smallest", smallest, 1)
    inner = optax.with_extra_args_support(tx)

    def narrow(leaf: Any) -> Any:
        wanted = paths.is_floating(leaf) and leaf.ndim and leaf.size >= smallest
        return _coded(leaf, min(block, leaf.shape[-1])) if wanted and leaf.dtype == jnp.float32 else leaf

    def init(params: PyTree) -> Any:
        return jax.tree.map(narrow, inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        wide = jax.tree.map(lambda leaf: _values(leaf) if _is_narrow(leaf) else leaf, state, is_leaf=_is_narrow)
        steps, wide = inner.update(updates, wide, params, **extra)
        return steps, jax.tree.map(narrow, wide)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_narrow(leaf: Any) -> bool:
    return isinstance(leaf, EightBits)


def dynamic_table(signed: bool) -> np.ndarray:
    """Return the 256 numbers, rising: for each power of ten from 1e-6 to 1 twice as many as for the one below it, and 0 and 1.

    Example:
      >>> table = dynamic_table(signed=False)
      >>> len(table), table[0].item(), table[-1].item(), round(dynamic_table(signed=True)[0].item(), 4)
      (256, 0.0, 1.0, -0.993)
    """
    found = [0.0, 1.0]
    for place in range(7):
        edges = np.linspace(0.1, 1, 2 ** (place if signed else place + 1) + 1)
        means = 10.0 ** (place - 6) * (edges[1:] + edges[:-1]) / 2
        found += [*means, *(-means if signed else [])]
    return np.sort(np.array(found)).astype(np.float32)


_TABLES = {signed: dynamic_table(signed) for signed in (False, True)}


def _coded(x: Array, block: int) -> EightBits:
    parts = _blocks(x, block)
    largest = jnp.max(jnp.abs(parts), axis=-1)
    signed = jnp.any(parts < 0, axis=-1)
    ratio = x / _spread(jnp.where(largest > 0, largest, 1), x.shape, block)
    middles = {kind: jnp.asarray((table[1:] + table[:-1]) / 2) for kind, table in _TABLES.items()}
    codes = {kind: jnp.searchsorted(middle, ratio).astype(jnp.uint8) for kind, middle in middles.items()}
    kinds = _spread(signed, x.shape, block)
    return EightBits(jnp.where(kinds, codes[True], codes[False]), jnp.where(signed, -largest, largest), block)


def _values(moment: EightBits) -> Array:
    scales = _spread(moment.scales, moment.codes.shape, moment.block)
    tables = {kind: jnp.asarray(table)[moment.codes] for kind, table in _TABLES.items()}
    return jnp.where(scales < 0, tables[True], tables[False]) * jnp.abs(scales)


def _blocks(x: Array, block: int) -> Array:
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)])
    return filled.reshape(*x.shape[:-1], -1, block)


def _spread(scales: Array, shape: tuple[int, ...], block: int) -> Array:
    return jnp.repeat(scales, block, axis=-1)[..., : shape[-1]]
