"""The collection "quantization": what quantizers of activations keep, beside a model's own variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lepton_jax.core.errors import collect, is_traced
from lepton_jax.core.paths import flatten
from lepton_jax.core.typing import PyTree

if TYPE_CHECKING:
    from lepton_jax.quantization.rules import Operand

COLLECTION = "quantization"
"""Its name among the variables."""


def with_sites(variables: PyTree, sites: Mapping[str, PyTree]) -> PyTree:
    """Return the variables with the collection "quantization" among them, of the same type.

    Args:
      variables: a mapping (a dict, a `FrozenDict`, an `nnx.State`).
      sites: of `calibrate_activations`.

    Raises:
      TypeError: if they are no mapping.

    Example:
      >>> with_sites({"params": 1}, {})
      {'params': 1, 'quantization': {}}
    """
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"with_sites: the variables must be a mapping, with the collection {COLLECTION!r} among them; got "
            f"{type(variables).__name__}. Put them into one: apply = lambda v, x: model(v['params'], x)."
        )
    return _alike(variables, {**variables, COLLECTION: sites})


def part(variables: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
    """Part variables into the model's own and the sites, of which there may be none.

    Example:
      >>> part({"params": 1, "quantization": {}})
      ({'params': 1}, {})
    """
    if not isinstance(variables, Mapping) or COLLECTION not in variables:
        return variables, {}
    sites: Mapping[str, PyTree] = variables[COLLECTION]
    return _alike(variables, {name: value for name, value in variables.items() if name != COLLECTION}), sites


def _alike(variables: Any, content: dict[str, Any]) -> Any:
    make: Any = type(variables)
    return make(content)


def check_sites(sites: Mapping[str, PyTree], decided: Mapping[Any, Sequence[Operand]]) -> None:
    """Raise unless there is a site for every operand that needs one, with finite values, and scales that are not zero.

    Raises:
      ValueError: with every operand that has none, or a bad one.
    """
    wanted = [operand for operands in decided.values() for operand in operands if operand.is_static]
    with collect(f"The collection {COLLECTION!r} does not serve these rules; calibrate (`calibrate_activations`)") as problems:
        for operand in wanted:
            where = f"{operand.operation}/{operand.argument}"
            site = sites.get(operand.operation, {})
            if operand.argument not in site:
                have = ", ".join(sites) or "none; put it among the variables by `with_sites`"
                problems.append(f"{where}: has no site; there are {have}")
                continue
            problems += wrong(where, site[operand.argument])


def wrong(where: str, site: PyTree) -> list[str]:
    """Say what is wrong with the values of a site. What is traced passes.

    Example:
      >>> wrong("dot_general/lhs", {"scale": np.zeros(1)})
      ['dot_general/lhs/scale: is zero; calibrate on batches in which this operand is not all zero']
    """
    problems = []
    for name, leaf in flatten(site).items():
        if is_traced(leaf):
            continue
        values = np.asarray(jax.device_get(leaf), np.float64)
        if not np.isfinite(values).all():
            problems.append(f"{where}/{name}: is not finite; calibrate on finite batches")
        elif name == "scale" and (values <= 0).any():
            state = "is zero" if not (values < 0).any() else "is negative"
            problems.append(f"{where}/{name}: {state}; calibrate on batches in which this operand is not all zero")
    return problems
