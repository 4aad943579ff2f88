"""Whether inputs are like a model's example."""

from typing import Any

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.kinds import wrong_leaf


def check_like(example: tuple[Any, ...], inputs: tuple[Any, ...], error: Exception) -> None:
    """Raise unless inputs are like the example's, of whatever length along their first axes.

    Args:
      example: what the model has.
      inputs: what it was called with.
      error: what that raised.

    Raises:
      ValueError: with every input that is missing, unknown, or of another shape or dtype.
    """
    wanted, given = paths.flatten(example), paths.flatten(inputs)
    problems = [f"{path}: missing" for path in wanted if path not in given]
    problems += [f"{path}: unknown; leave it out" for path in given if path not in wanted]
    for path in (path for path in wanted if path in given):
        if said := wrong_leaf(given[path]):
            problems.append(f"{path}: needs an array; got {said}")
            continue
        (needed, got) = ((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in (wanted[path], given[path]))
        if (len(needed[0]), needed[0][1:], needed[1]) != (len(got[0]), got[0][1:], got[1]):
            rows = ", ".join(["any", *map(str, needed[0][1:])] if needed[0] else [])
            problems.append(f"{path}: needs {needed[1]}[{rows}]; got {got[1]}{list(got[0])}; reshape it or convert it")
    if problems:
        raise ValueError("the inputs are not like the model's example: " + "; ".join(problems) + ".") from error
