"""Re-evaluating a graph, with some operations done otherwise."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, equations_of, split_keywords, trace


class Interpreter:
    """Evaluates a jaxpr operation by operation; a subclass does some of them otherwise.

    Subclasses override `handle`, which sees every operation (calls and loops included) before it is evaluated. What it
    returns takes the place of the results; None leaves the operation to `default`, which binds the same primitive with
    the same parameters or, for calls and loops, rebuilds it around its evaluated body.

    Values are arrays or pytrees (packed leaves). They pass through `jit`, `scan` (as constants and as scanned inputs),
    `cond` and `remat` as they are; where only an array will do (an operation that `handle` left alone, a loop carry, a
    function with its own derivative rule) `dense` makes it one.

    Args:
      traced: the graph that is to be run.
      sites: values of the rewrite's own by operation name (see `Traced.names`), for `handle` to read by `site`. Those of
        operations in a scan have its length as their leading axis, and are scanned over with it. Those in a `shard_map` are
        whole on every device, or with `sites_per_device` have a leading axis of one slice for each.

    Example:
      >>> class Doubled(Interpreter):
      ...     def handle(self, eqn, values):
      ...         return [2 * self.bind(eqn, values)[0]] if eqn.primitive == "dot_general" else None
      >>> double = rewrite(lambda v, x: x @ v["kernel"], Doubled)
      >>> double({"kernel": jnp.eye(2)}, jnp.array([1.0, 3.0])).tolist()
      [2.0, 6.0]
    """

    sites_per_device = False

    def __init__(self, traced: Traced, sites: Mapping[str, PyTree] | None = None):
        self.traced = traced
        self.sites = dict(sites or {})
        self.emitted: dict[str, PyTree] = {}

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        """Return the results of an operation, or None to leave it to `default`.

        Args:
          eqn: the operation: its `primitive`, `params`, `path`, `scope`, shapes as traced.
          values: its operands, arrays or pytrees.
        """
        return None

    def dense(self, value: Any) -> Any:
        """Return an array for a value; override it for values that are pytrees."""
        return value

    def site(self, eqn: Equation) -> PyTree:
        """The rewrite's own value for this operation, inside a scan this iteration's slice; None if it has none."""
        return self.sites.get(self.name(eqn))

    def name(self, eqn: Equation) -> str:
        """The operation's readable, unique name. Inside a derivative rule, that of the call that has the rule."""
        path = eqn.path
        while path not in self.traced.names:
            path = path[:-1]
        return self.traced.names[path]

    def emit(self, name: str, value: PyTree) -> None:
        """Hand out a value beside the results, in `emitted`; from inside a scan or `shard_map` they come out stacked."""
        self.emitted[name] = value

    def __call__(self, variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        """Evaluate the graph on arguments as it was traced with; return the outputs."""
        arrays, _ = split_keywords(static)
        return jax.tree.unflatten(self.traced.out_tree, self.run(self.traced.flatten(variables, inputs, arrays)))

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Evaluate the whole graph on the values of its inputs, variables first; return the flat outputs, dense."""
        outs = self.evaluate(self.traced.jaxpr, self.traced.consts, values)
        return [self.dense(value) for value in outs]

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        """Evaluate a jaxpr, found at `path`, on values for its inputs."""
        # One list, because an open jaxpr of jax 0.11 counts its constvars among its invars.
        env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values]))
        for eqn, last_read in zip(equations_of(jaxpr, path, scope), _last_uses(jaxpr)):
            operands = [_compat.literal_value(v) if _compat.is_literal(v) else env[v] for v in eqn.invars]
            with _compat.context(eqn.raw):
                outs = self.handle(eqn, operands)
                if outs is None:
                    outs = self.default(eqn, operands)
            env.update(zip(eqn.outvars, outs))
            for var in last_read:
                env.pop(var, None)
        return [_compat.literal_value(v) if _compat.is_literal(v) else env[v] for v in jaxpr.outvars]

    def default(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        """Evaluate an operation as it was traced, going into calls and loops."""
        match eqn.primitive:
            case "scan":
                return self._scan(eqn, values)
            case "while":
                return self._while(eqn, values)
            case "cond":
                return self._cond(eqn, values)
            case "remat2" | "checkpoint":
                return self._remat(eqn, values)
            case "shard_map":
                return self._shard_map(eqn, values)
            case "custom_jvp_call":
                return _compat.bind_custom_jvp(eqn.raw, self._dense(values), self._rule(eqn))
            case "custom_vjp_call":
                return _compat.bind_custom_vjp(eqn.raw, self._dense(values), self._rule(eqn))
        if eqn.bodies:
            return self._call(eqn, values)
        return self.bind(eqn, values)

    def bind(self, eqn: Equation, values: Sequence[Any], **changed: Any) -> list[Any]:
        """Apply the operation's own primitive to the values, made dense, with some parameters changed."""
        return _compat.bind(eqn.raw, self._dense(values), **changed)

    def inner(self, eqn: Equation, body: _compat.Body, values: Sequence[Any]) -> list[Any]:
        """Evaluate an inner jaxpr of a call."""
        return self.evaluate(body.jaxpr, body.consts, values, (*eqn.path, body.label), eqn.scope)

    def scanned(self, value: Any, length: int) -> Any:
        """Return a scanned value such that every leaf has the leading axis; a pytree that lacks it is made dense."""
        return value if all(np.shape(leaf)[:1] == (length,) for leaf in jax.tree.leaves(value)) else self.dense(value)

    def sliced(self, value: Any) -> Any:
        """Return one step's slice of a scanned pytree with its own record of its shape, if it keeps one, set right."""
        return value

    def _dense(self, values: Sequence[Any]) -> list[Any]:
        return [self.dense(value) for value in values]

    def _rule(self, eqn: Equation) -> _compat.Evaluate:
        def evaluate(label: str, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
            outs, emitted = self._collect(
                lambda: self._dense(self.evaluate(jaxpr, consts, values, (*eqn.path, label), eqn.scope))
            )
            _refuse(emitted, eqn, "a function with its own derivative rule")
            return outs

        return evaluate

    def _collect(self, run: Callable[[], Any], sites: Mapping[str, PyTree] | None = None) -> tuple[Any, dict[str, PyTree]]:
        """Run with values of `sites` of its own; return its result and what it emitted."""
        outer_emitted, outer_sites = self.emitted, self.sites
        self.emitted, self.sites = {}, outer_sites if sites is None else {**outer_sites, **sites}
        try:
            result = run()
            return result, self.emitted
        finally:
            self.emitted, self.sites = outer_emitted, outer_sites

    def _call(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        # Inlined: XLA inlines every call; what a jit says about placement is kept as constraints.
        [body] = eqn.bodies
        values = _constrain(values, eqn.params.get("in_shardings"))
        return _constrain(self.inner(eqn, body, values), eqn.params.get("out_shardings"))

    def _remat(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        [body] = eqn.bodies
        prevent_cse = eqn.params["prevent_cse"]

        def function(*args: Any) -> Any:
            # A jaxpr that is already the backward pass has its barrier here; jax.checkpoint would put it only
            # around the backward pass of this one.
            held = jax.lax.optimization_barrier(args) if eqn.params["differentiated"] and prevent_cse else args
            return self._collect(lambda: self._dense(self.inner(eqn, body, held)))

        whole = prevent_cse if isinstance(prevent_cse, bool) else any(prevent_cse)
        outs, emitted = jax.checkpoint(function, prevent_cse=whole, policy=eqn.params["policy"])(*values)
        self.emitted.update(emitted)
        return outs

    def _scan(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        [body] = eqn.bodies
        n_consts, n_carry = _compat.scan_counts(eqn.raw)
        length = eqn.params["length"]
        consts, carry = values[:n_consts], self._dense(values[n_consts : n_consts + n_carry])
        scanned = [self.scanned(value, length) for value in values[n_consts + n_carry :]]
        sites = self._sites_in(eqn)

        def step(state: Any, slices: Any) -> Any:
            given, own = slices
            outs, emitted = self._collect(
                lambda: self._dense(self.inner(eqn, body, [*consts, *state, *map(self.sliced, given)])), own
            )
            return _like(outs[:n_carry], state, eqn), (outs[n_carry:], emitted)

        carry, (outs, emitted) = jax.lax.scan(
            step, carry, (scanned, sites), length=length, reverse=eqn.params["reverse"], unroll=eqn.params["unroll"]
        )
        self.emitted.update(emitted)
        return [*carry, *outs]

    def _sites_in(self, eqn: Equation) -> dict[str, PyTree]:
        """The sites of the operations inside a call."""
        paths = {name: path for path, name in self.traced.names.items()} if self.sites else {}
        return {name: v for name, v in self.sites.items() if paths.get(name, ())[: len(eqn.path)] == eqn.path}

    def _shard_map(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        [body] = eqn.bodies
        # Whole on every device, a pytree may go in as it is.
        values = [self.dense(v) if any(n > 1 for n in parts) else v for v, parts in zip(values, body.parts_in)]

        def run(given: Sequence[Any], sites: dict[str, PyTree]) -> Any:
            return self._collect(lambda: self._dense(self.inner(eqn, body, given)), sites)

        outs, emitted = _compat.bind_shard_map(eqn.raw, values, self._sites_in(eqn), run, self.sites_per_device)
        self.emitted.update(emitted)
        return outs

    def _while(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        cond, body = eqn.bodies
        [pred] = cond.jaxpr.outvars
        batched = _compat.aval(pred).shape != ()
        n_cond = eqn.params["cond_nconsts"]
        n_consts = n_cond + eqn.params["body_nconsts"]
        init = self._dense(values[n_consts:])

        def evaluate(inner: _compat.Body, args: Sequence[Any]) -> list[Any]:
            outs, emitted = self._collect(lambda: self._dense(self.inner(eqn, inner, args)))
            _refuse(emitted, eqn, "a while loop, whose number of steps is not known")
            return outs

        def going(state: Any) -> Any:
            return evaluate(cond, [*values[:n_cond], *state])[0]

        def step(state: Any) -> Any:
            new = _like(evaluate(body, [*values[n_cond:n_consts], *state]), state, eqn)
            if not batched:
                return new
            # A loop under vmap: the examples that are done keep their state.
            going_on = going(state)
            return [
                jnp.where(jnp.reshape(going_on, going_on.shape + (1,) * (jnp.ndim(n) - going_on.ndim)), n, s)
                for n, s in zip(new, state)
            ]

        return list(jax.lax.while_loop(lambda state: jnp.any(going(state)), step, init))

    def _cond(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        operands = tuple(values[1:])
        runs = [lambda *args, body=body: self._collect(lambda: self._dense(self.inner(eqn, body, args))) for body in eqn.bodies]
        shapes: dict[str, PyTree] = {}
        for run in runs:
            shapes.update(jax.eval_shape(run, *operands)[1])

        def filled(run: Callable[..., Any]) -> Callable[..., Any]:
            def branch(*args: Any) -> Any:
                outs, emitted = run(*args)
                # A branch not taken has no value to hand out: zeros.
                zeros = {name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree) for name, tree in shapes.items()}
                return outs, {**zeros, **emitted}

            return branch

        branches = [filled(run) for run in runs]
        platforms = eqn.params.get("branches_platforms")
        if platforms is None:
            outs, emitted = jax.lax.switch(values[0], branches, *operands)
        else:
            named = {name: b for names, b in zip(platforms, branches) for name in names or ()}
            default = next((b for names, b in zip(platforms, branches) if names is None), None)
            outs, emitted = jax.lax.platform_dependent(*operands, default=default, **named)
        self.emitted.update(emitted)
        return list(outs)


@checked
def rewrite(apply: Apply, interpreter: Callable[[Traced], Interpreter]) -> Apply:
    """Return a function that evaluates the graph of `apply` by an interpreter.

    It traces `apply` anew whenever it is called, so it serves any input shapes. Under `jax.jit` that happens once for
    each shape; call it under jit.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      interpreter: makes the interpreter for a graph.

    Example:
      >>> class Doubled(Interpreter):
      ...     def handle(self, eqn, values):
      ...         return [2 * out for out in self.default(eqn, values)] if eqn.primitive == "dot_general" else None
      >>> doubled = rewrite(lambda v, x: x @ v["kernel"], Doubled)
      >>> jax.jit(doubled)({"kernel": jnp.ones((2, 1))}, jnp.ones((1, 2)))
      Array([[4.]], dtype=float32)
    """

    @wraps(apply)
    def rewritten(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        return interpreter(trace(apply, variables, *inputs, **static))(variables, *inputs, **static)

    return rewritten


def _last_uses(jaxpr: Any) -> list[list[Any]]:
    """For every equation, the variables that nothing after it reads; run eagerly, their memory is freed."""
    seen = {v for v in jaxpr.outvars if not _compat.is_literal(v)}
    dying: list[list[Any]] = []
    for eqn in reversed(jaxpr.eqns):
        last = {v for v in (*eqn.invars, *eqn.outvars) if not _compat.is_literal(v) and v not in seen}
        seen |= last
        dying.append(list(last))
    return dying[::-1]


def _constrain(values: Sequence[Any], shardings: Sequence[Any] | None) -> list[Any]:
    if shardings is None:
        return list(values)
    return [
        jax.lax.with_sharding_constraint(value, sharding) if isinstance(sharding, jax.sharding.Sharding) else value
        for value, sharding in zip(values, shardings)
    ]


def _like(new: Sequence[Any], old: Sequence[Any], eqn: Equation) -> list[Any]:
    """Check that a loop's carry keeps its shape and dtype, which a rewritten body may not have kept."""
    for index, (n, o) in enumerate(zip(new, old)):
        if (jnp.shape(n), jnp.result_type(n)) != (jnp.shape(o), jnp.result_type(o)):
            raise TypeError(
                f"{eqn.primitive} at {eqn.scope or 'the top'}: the rewritten body must keep the type of carry {index}, "
                f"{jnp.result_type(o)}{jnp.shape(o)}; got {jnp.result_type(n)}{jnp.shape(n)}. Cast the value back."
            )
    return list(new)


def _refuse(emitted: Mapping[str, Any], eqn: Equation, where: str) -> None:
    if emitted:
        raise ValueError(
            f"{', '.join(emitted)}: no value can be handed out of {where} ({eqn.primitive} at {eqn.scope or 'the top'}). "
            "Choose the call itself or an operation outside."
        )
