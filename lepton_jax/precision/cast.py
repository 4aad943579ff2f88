"""Mixed precision as a view: float32 masters, seen in another dtype."""

from typing import Any

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import is_coded
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import PyTree, Select

PRESETS = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}
"""Short names of dtypes, beside those that numpy and jax have."""


def floating(what: str, dtype: Any) -> jnp.dtype:
    """Return a floating dtype by any of its names; None has none.

    Raises:
      TypeError: if it is none.

    Example:
      >>> floating("compute_dtype", "bfloat16"), floating("compute_dtype", "bf16")
      (dtype(bfloat16), dtype(bfloat16))
    """
    if dtype is None:  # which numpy reads as float64
        raise TypeError(f"{what} must be a floating dtype, e.g. 'bfloat16'; got None.")
    try:
        found = jnp.dtype(PRESETS.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError as error:
        raise TypeError(f"{what} must be a floating dtype, e.g. 'bfloat16'; got {dtype!r}.") from error
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"{what} must be floating, e.g. 'bfloat16'; got {found.name}.")
    return found


@checked
@named
def cast(compute_dtype: jnp.dtype | type | str, *, select: Select = paths.floating) -> Transform:
    """Show floating parameters in `compute_dtype`: ``view = w.astype(compute_dtype)``; masters and gradients stay float32.

    Args:
      compute_dtype: a floating dtype, e.g. `jnp.bfloat16` or its name, "bfloat16" or "bf16".
      select: which leaves; by default every floating one.

    Raises:
      TypeError: if the dtype is not floating.
      ValueError: if the selector matches nothing.

    Example:
      >>> transform = cast("bfloat16")
      >>> params, state = transform.init({"w": jnp.array([1.0, 1.001])})
      >>> transform.view(params, state)["w"]
      Array([1, 1], dtype=bfloat16)

    Source: Micikevicius et al. 2018, "Mixed precision training", section 3.1.
    """
    dtype = floating("cast: compute_dtype", compute_dtype)
    paths.check_select("cast: select", select)

    def init(params: PyTree) -> tuple[PyTree, tuple[()]]:
        paths.select(params, select)
        return params, ()

    def view(params: PyTree, state: tuple[()]) -> PyTree:
        leaves = paths.flatten(params, is_coded)
        seen = {p: x.astype(dtype) for p, x in leaves.items() if paths.is_floating(x) and paths.matches(select, p, x, leaves)}
        return paths.replace(params, seen, is_coded)

    return Transform(init, view, hold, pack=view)
