"""What layers cost: multiply-accumulates by leaf, and the time of a layer's own operation, dense and in factors."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.packed import Packed
from lepton_jax.core.timing import interleaved
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.cost import cost
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.trace import Apply, Equation, trace
from lepton_jax.native.interpreter import packed


@checked
def dense_macs(apply: Apply, params: PyTree, *inputs: Any) -> dict[Path, float]:
    """Return the multiply-accumulates that one call spends on each leaf; for ``Budget(of="macs", macs=...)``.

    Args:
      apply: ``apply(params, *inputs)``; the paths are those of `params`.
      params: arrays, or their shapes.
      inputs: arrays, or their shapes.

    Example:
      >>> dense_macs(lambda p, x: x @ p["w"] + p["b"], {"w": jnp.ones((3, 2)), "b": jnp.ones((5, 2))}, jnp.ones((5, 3)))
      {'b': 0, 'w': 30}
    """
    return {path: parameter.macs for path, parameter in cost(apply, params, *inputs).parameters.items()}


@checked
def layer_times(
    apply: Apply, params: PyTree, factors: Mapping[Path, Packed], *inputs: Any, rounds: int = 20
) -> dict[Path, tuple[float, float]]:
    """Time the operation of each layer, dense and in factors, at the shapes that it has in the model.

    Both are compiled and run in turn; medians. Inputs of the operations are random.

    Args:
      apply: ``apply(params, *inputs)``.
      params: the dense leaves.
      factors: of some leaves, by path.
      inputs: of the model; arrays, or their shapes.
      rounds: how often each is run.

    Returns:
      ``{path: (seconds dense, seconds in factors)}``. A leaf whose operation cannot be taken out by itself is missing: one that
      is transposed or reshaped on the way, used inside a scan, or only looked up.

    Example:
      >>> from lepton_jax.lowrank.svd import Svd
      >>> params = {"w": jnp.ones((4, 4))}
      >>> times = layer_times(
      ...     lambda p, x: x @ p["w"], params, {"w": Svd().factorize(params["w"], 1)}, jnp.ones((2, 4)), rounds=1
      ... )
      >>> list(times), all(seconds > 0 for seconds in times["w"])
      (['w'], True)
    """
    check_whole("layer_times: rounds", rounds, 1)
    leaves = paths.flatten(params)
    found: dict[Path, tuple[float, float]] = {}
    for path, run, x in _layers(apply, params, inputs):
        if path in factors and path not in found:
            dense, factored = jax.jit(run), jax.jit(packed(run))
            calls = {"dense": partial(dense, leaves[path], x), "factored": partial(factored, factors[path], x)}
            times = interleaved(calls, rounds=rounds, warmup=2)
            found[path] = times["dense"], times["factored"]
    return found


def _layers(apply: Apply, params: PyTree, inputs: tuple[Any, ...]) -> Iterator[tuple[Path, Callable[..., Any], jax.Array]]:
    """Yield ``(path, operation(weight, x), x)`` of the dots and convolutions that a leaf enters as it is."""
    traced = trace(apply, params, *inputs)
    known, shapes = origins(traced), {p: a.shape for p, a in zip(traced.variables, traced.in_avals)}
    rng = np.random.default_rng(0)
    for eqn in traced.equations():
        if eqn.primitive not in ("dot_general", "conv_general_dilated") or (eqn.times or 1) > 1:
            continue
        given = operand_origins(known, eqn)
        for place, origin in enumerate(given):
            if origin is None or len(origin) != 1 or given[1 - place] is not None:
                continue
            [path] = origin
            if eqn.in_avals[place].shape == shapes[path]:
                other = eqn.in_avals[1 - place]
                x = jnp.asarray(rng.normal(size=other.shape), other.dtype)
                yield path, _operation(eqn, place), x


def _operation(eqn: Equation, place: int) -> Callable[..., Any]:
    def run(weight: Any, x: jax.Array) -> Any:
        return _compat.bind(eqn.raw, [weight, x] if place == 0 else [x, weight])[0]

    return run
