"""Which form of each operation is fastest here, by measuring."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.typing import Array
from lepton_jax.graph import _compat
from lepton_jax.graph.lowering import table as files
from lepton_jax.graph.lowering.apply import traced_call
from lepton_jax.graph.lowering.choose import DIRECT, rules_of, site_of
from lepton_jax.graph.lowering.explain import operations
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.rules import DEFAULT
from lepton_jax.graph.lowering.site import Site

_GAIN, _NEAR, _HOPELESS = 0.93, 0.65, 3.0
_ROUNDS, _LEAST = 5, 0.004


@checked_but("rules")
def measure_lowerings(
    function: Callable[..., Any],
    *arguments: Any,
    cache: str | os.PathLike[str] | None = None,
    rules: Sequence[Rule | str] = DEFAULT,
    **keywords: Any,
) -> dict[str, str]:
    """Time the forms of every convolution and pool of a function on this machine, and return the fastest.

    Times are least processor times over rounds in which the forms take turns, of arrays of random numbers. A form is taken for
    7 % or more. An operation that runs at 65 % of this machine's rate of dots is left alone.

    Args:
      function: as `fast_lowering` is given it.
      *arguments: as it is called with; shapes will do.
      cache: a JSON file that keeps what was measured, and is added to. One of another machine is ignored, with a warning.
      rules: whose forms are tried, where they can do an operation, whether or not they expect to pay.
      **keywords: of the call.

    Returns:
      the form of each operation, for `fast_lowering` as `table`.

    Raises:
      ValueError: for an unknown rule.
      TypeError: for what cannot be traced.

    Example:
      >>> def apply(kernel, x):
      ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> measured = measure_lowerings(apply, jnp.ones((3, 3, 128, 128)), jnp.ones((32, 2, 2, 128)))
      >>> list(measured.values())
      ['small image']
    """
    tried = rules_of("measure_lowerings", rules, DEFAULT)
    traced, _ = traced_call(function, arguments, keywords)
    found: dict[Site, Any] = {}
    for eqn in operations(traced):
        site = site_of(eqn)
        if site is not None and all(isinstance(n, int) for shape in (*site.shapes, site.result) for n in shape):
            found.setdefault(site, eqn)
    kept: dict[str, Any] = {} if cache is None else files.read(cache)
    rate: float | None = None
    for site, eqn in found.items():
        if site.key in kept:
            continue
        forms = {rule.name: partial(rule.form, site) for rule in tried if rule.can(site)}
        rate = dot_rate() if rate is None else rate
        kept[site.key] = _measured(site, partial(_direct, eqn), forms, rate)
        if cache is not None:
            files.write(cache, kept)
    return {site.key: kept[site.key]["form"] for site in found}


def _direct(eqn: Any, *operands: Array) -> Array:
    return _compat.bind(eqn.raw, operands)[0]


def _measured(site: Site, direct: Callable[..., Array], forms: Mapping[str, Any], rate: float) -> dict[str, Any]:
    operands = [_noise(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(site.shapes, site.dtypes))]
    compiled = {DIRECT: jax.jit(direct).lower(*operands).compile()}
    [seconds] = _turns(compiled, operands).values()
    macs = site.convolution.macs if site.convolution is not None else 0
    if not forms or macs / seconds > _NEAR * rate:
        return {"form": DIRECT, "milliseconds": {DIRECT: round(1e3 * seconds, 5)}}
    compiled |= {name: jax.jit(form).lower(*operands).compile() for name, form in forms.items()}
    taken = _turns(compiled, operands)
    best = min(taken, key=lambda name: taken[name])
    form = best if taken[best] <= _GAIN * taken[DIRECT] else DIRECT
    return {"form": form, "milliseconds": {name: round(1e3 * least, 5) for name, least in taken.items()}}


def _noise(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(rng.integers(-100 if jnp.issubdtype(dtype, jnp.signedinteger) else 0, 100, shape), dtype)
    return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)


def _turns(compiled: Mapping[str, Any], operands: Sequence[Array]) -> dict[str, float]:
    """The least processor seconds of each; those that are much slower than the fastest take one turn."""
    first = {}
    for name, run in compiled.items():
        jax.block_until_ready(run(*operands))
        first[name] = _once(run, operands, 1)
    live = [name for name in compiled if first[name] <= _HOPELESS * min(first.values())]
    least = dict(first)
    for _ in range(_ROUNDS):
        for name in live:
            repeats = max(1, min(50, int(_LEAST / max(first[name], 1e-6))))
            least[name] = min(least[name], _once(compiled[name], operands, repeats))
    return least


def _once(run: Callable[..., Any], operands: Sequence[Array], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        out = run(*operands)
    jax.block_until_ready(out)
    return max((time.process_time() - start) / repeats, 1e-9)


def dot_rate(size: int = 512) -> float:
    """Return how many multiply-accumulates a second of processor time this machine does in a square dot of float32.

    Args:
      size: of the square.

    Example:
      >>> dot_rate(64) > 0
      True
    """
    x = jnp.ones((size, size), jnp.float32)
    compiled = {DIRECT: jax.jit(jnp.matmul).lower(x, x).compile()}
    return size**3 / _turns(compiled, (x, x))[DIRECT]
