"""The sites of quantizers of activations: calibrated on batches, kept in a collection beside a model's own variables."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import collect, is_traced
from lepton_jax.core.packed import is_packed
from lepton_jax.core.paths import flatten, path_str
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.formats.ranges import Calibration, MinMax
from lepton_jax.graph.cost import dense_shapes
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, split_keywords, trace
from lepton_jax.leaves.form import Native
from lepton_jax.native.interpreter import PackedInterpreter, entered
from lepton_jax.quantization.decide import decide
from lepton_jax.quantization.quantizers import joined, spans
from lepton_jax.quantization.rules import Operand, Rule, rules_of

Decided = Mapping[CallPath, Sequence[Operand]]
COLLECTION = "quantization"
"""Its name among the variables."""


@checked
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


def values_of(variables: PyTree, inputs: Sequence[Any], static: Mapping[str, Any]) -> list[Any]:
    """Return the values of a graph's inputs, packed leaves in the form in which they run."""
    arrays, _ = split_keywords(static)
    leaves = jax.tree_util.tree_flatten_with_path((variables, tuple(inputs), arrays), is_leaf=is_packed)[0]
    return [entered(leaf, path_str(key_path[1:])) for key_path, leaf in leaves]


@checked_but("rules")
def calibrate_activations(
    apply: Apply, rules: Rule | Sequence[Rule], variables: PyTree, batches: Iterable[Any], **static: Any
) -> dict[str, dict[str, PyTree]]:
    """Return the sites of the quantizers that need a range, calibrated on batches: the collection "quantization".

    The model runs unrounded, batch after batch under jit, and every operand's range is followed as its quantizer's
    `calibration` says. Operations in a scan have a site for every step, those in a `shard_map` one for all devices; those in
    a branch must run at least once.

    Args:
      apply: as for `quantize_activations`.
      rules: likewise.
      variables: the model's own; a collection "quantization" is left out.
      batches: each one array or a tuple of inputs. Batches of another shape compile anew.
      **static: keywords of `apply`.

    Returns:
      what each quantizer keeps, by operation and argument; put it among the variables by `with_sites`. Empty if no rule needs a
      range.

    Raises:
      ValueError: without batches; for rules that do not fit; for operands that never ran, or whose scale is zero or not finite.

    Example:
      >>> from lepton_jax.quantization import Static, Uniform
      >>> rule = Rule(quantizer=Static(Uniform(8)))
      >>> batches = [jnp.array([[1.0, 63.75]]), jnp.array([[127.5, -1.0]])]
      >>> sites = calibrate_activations(lambda v, x: x @ v, rule, jnp.eye(2), batches)
      >>> sites["dot_general"]["lhs"]["scale"].tolist()
      [[1.0]]
    """
    checked, (own, _) = rules_of(rules), part(variables)
    states: dict[str, Any] | None = None
    decided: Decided = {}

    @jax.jit
    def step(states: Any, own: PyTree, inputs: tuple[Any, ...]) -> Any:
        traced = trace(apply, dense_shapes(own), *inputs, **static)
        observer = _Observer(traced, decide(traced, checked), states)
        observer.run(values_of(own, inputs, static))
        return {name: _merged(states[name], observer.emitted.get(name, {})) for name in states}

    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        if states is None:
            decided = decide(trace(apply, dense_shapes(own), *inputs, **static), checked)
            states = _start(decided)
        states = step(states, own, inputs)
    if states is None:
        raise ValueError("calibrate_activations: needs at least one batch, an array or a tuple of inputs; got none.")
    return _finished(decided, states)


def calibration_of(operand: Operand) -> Calibration:
    """Return how an operand's range is found: as its quantizer says, by default everything."""
    return getattr(operand.quantizer, "calibration", None) or MinMax()


class _Observer(PackedInterpreter):
    """Follows the ranges of operands, and rounds nothing."""

    sites_per_device = True

    def __init__(self, traced: Traced, decided: Decided, states: Mapping[str, Any]):
        super().__init__(traced)
        self.sites, self.decided = dict(states), decided

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        states = self.site(eqn)
        if states is not None and eqn.path in self.decided:
            new = {}
            for operand, value in zip(self.decided[eqn.path], values):
                # A packed operand has its format already.
                if operand.argument in states:
                    x = value.dense() if isinstance(value, Native) else value
                    new[operand.argument] = _observed(operand, states[operand.argument], x)
            self.emit(self.name(eqn), new)
        return super().handle(eqn, values)


def _observed(operand: Operand, state: tuple[Array, Sequence[Any]], x: Array) -> tuple[Array, list[Any]]:
    assert operand.quantizer is not None
    parts = spans(jnp.asarray(x).astype(jnp.float32), operand.quantizer.format, operand.axes)
    observe = calibration_of(operand).observe
    return jnp.ones((), bool), [observe(old, part.values, part.axes) for old, part in zip(state[1], parts)]


def _start(decided: Decided) -> dict[str, dict[str, Any]]:
    """The states before the first batch: (whether the operand ran, one state for each of its parts)."""
    states: dict[str, dict[str, Any]] = {}
    for operand in (one for operands in decided.values() for one in operands if one.is_static):
        assert operand.quantizer is not None
        fmt, calibration = operand.quantizer.format, calibration_of(operand)
        shapes = jax.eval_shape(
            lambda x, fmt=fmt, axes=operand.axes: [jnp.sum(p.values, p.axes, keepdims=True) for p in spans(x, fmt, axes)],
            jax.ShapeDtypeStruct(operand.shape, jnp.float32),
        )
        state = (jnp.zeros((), bool), [calibration.init(one.shape) for one in shapes])
        stacked = jax.tree.map(lambda leaf, loops=operand.loops: jnp.broadcast_to(leaf, (*loops, *leaf.shape)), state)
        states.setdefault(operand.operation, {})[operand.argument] = stacked
    return states


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new states where the operand ran, which in a branch not taken it did not."""
    out = {}
    for argument, (ran, states) in old.items():
        if argument not in new:
            out[argument] = (ran, states)
            continue
        now, updated = new[argument]
        kept = jax.tree.map(
            lambda a, b, now=now: jnp.where(now.reshape(now.shape + (1,) * (b.ndim - now.ndim)), b, a), states, updated
        )
        out[argument] = (ran | now, kept)
    return out


def _finished(decided: Decided, states: Mapping[str, Any]) -> dict[str, dict[str, PyTree]]:
    sites: dict[str, dict[str, PyTree]] = {}
    with collect("calibrate_activations: these operands could not be calibrated") as problems:
        for operand in (one for operands in decided.values() for one in operands if one.is_static):
            ran, own = states[operand.operation][operand.argument]
            where = f"{operand.operation}/{operand.argument}"
            if not bool(jnp.all(ran)):
                problems.append(f"{where}: never ran on these batches; give some on which its branch is taken, or exclude it")
                continue
            site, finite = jax.jit(partial(_site, operand))(own)
            if not bool(finite):
                problems.append(f"{where}: met infinite values; calibrate on finite batches, or by a Percentile")
            problems += wrong(where, site)
            sites.setdefault(operand.operation, {})[operand.argument] = site
    return sites


def _site(operand: Operand, states: Sequence[Any]) -> tuple[PyTree, Array]:
    """The site, and whether its range is finite. Devices have the range in which all of theirs lie."""
    quantizer = operand.quantizer
    assert quantizer is not None

    def ranges(states: Sequence[Any]) -> tuple[Array, Array]:
        found = [calibration_of(operand).range(state, quantizer.format) for state in states]
        return joined(found, operand.shape, quantizer.format, operand.axes)

    init = quantizer.init
    for place in range(len(operand.loops)):
        ranges = jax.vmap(ranges)
        init = init if place in operand.devices else jax.vmap(init)
    low, high = ranges(states)
    low, high = jnp.min(low, axis=operand.devices), jnp.max(high, axis=operand.devices)
    return init(low, high), jnp.all(jnp.isfinite(low) & jnp.isfinite(high))
