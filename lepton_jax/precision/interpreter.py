"""Running a graph by its plans of mixed precision."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import COMPARISONS
from lepton_jax.graph.trace import CallPath, Equation, Traced
from lepton_jax.precision.fp8 import Amax, Fp8
from lepton_jax.precision.fp8 import dot as fp8_dot
from lepton_jax.precision.plan import Node, Plan, Stretch, Value, make_plan
from lepton_jax.precision.policy import Policy
from lepton_jax.precision.rules import COMPUTE, Decision, Rules, is_wide


class Autocast(Interpreter):
    """Runs a graph by plans of mixed precision, one for each jaxpr that it comes into.

    Args:
      traced: the graph.
      policy: the dtypes.
      rules: the table and what overrules it.
      recompute: see `autocast`.
      fp8: see `autocast`.
      amax: the histories, by operation.
    """

    def __init__(
        self,
        traced: Traced,
        policy: Policy,
        rules: Rules,
        recompute: bool = True,
        fp8: Fp8 | None = None,
        amax: Mapping[str, Amax] | None = None,
    ):
        super().__init__(traced, amax)
        self.fp8 = fp8
        self.narrow = policy.compute_dtype
        self.output_dtype = policy.output_dtype
        self.rules, self.recompute = rules, recompute
        self.decisions: dict[str, Decision] = {}
        # How the outputs of the next jaxpr are wanted: for each, True for the dtype as traced, False for the narrow one.
        self._outputs: Sequence[bool] | None = None
        # The same for the bodies of calls, by where the call stands.
        self._results: dict[CallPath, Sequence[bool]] = {}

    def run(self, values: Sequence[Any]) -> list[Any]:
        outs = super().run(values)
        if self.output_dtype is None:
            return outs
        state = _state_outputs(self.traced)
        return [
            out.astype(self.output_dtype) if jnp.issubdtype(jnp.result_type(out), jnp.floating) and i not in state else out
            for i, out in enumerate(outs)
        ]

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        wide = self._outputs if self._outputs is not None else [True] * len(jaxpr.outvars)
        self._outputs = None
        variables = [*jaxpr.constvars, *jaxpr.invars][len(consts) :]
        narrow = [is_wide(_compat.aval(var)) and self._is_narrow(value) for var, value in zip(variables, values)]
        plan = make_plan(jaxpr, consts, path, scope, narrow, wide, lambda eqn: self.rules(eqn, self.name(eqn)))
        return self._follow(plan, values, wide)

    def inner(self, eqn: Equation, body: _compat.Body, values: Sequence[Any]) -> list[Any]:
        # Loops and branches give what they gave.
        self._outputs = self._results.get(eqn.path, [True] * len(body.jaxpr.outvars))
        return super().inner(eqn, body, values)

    def _is_narrow(self, value: Any) -> bool:
        return jnp.result_type(value) == self.narrow and self.narrow != jnp.float32

    def _follow(self, plan: Plan, values: Sequence[Any], wide: Sequence[bool]) -> list[Any]:
        env: dict[Value, Any] = {**plan.consts, **dict(zip(plan.inputs, values))}
        for stretch in plan.stretches:
            self._run_stretch(stretch, env)
        return [
            self._as_traced(value, _read(env, value)) if keep else self._narrowed(value, _read(env, value))
            for value, keep in zip(plan.outputs, wide)
        ]

    def _run_stretch(self, stretch: Stretch, env: dict[Value, Any]) -> None:
        if len(stretch.nodes) == 1 and stretch.nodes[0].mode != "wide":
            [node] = stretch.nodes
            env.update(zip(node.outs, self._run_node(node, [_read(env, value) for value in node.ins])))
            return

        def run(*given: Any) -> list[Any]:
            local = dict(zip(stretch.inputs, given))
            for node in stretch.nodes:
                local.update(zip(node.outs, self._run_node(node, [_read(local, value) for value in node.ins])))
            return [self._narrowed(v, local[v]) if v.rounded else local[v] for v in stretch.leaving]

        if self.recompute and not stretch.is_linear:
            run = jax.checkpoint(run, prevent_cse=False, policy=_saved)
        env.update(zip(stretch.leaving, run(*(_read(env, value) for value in stretch.inputs))))

    def _run_node(self, node: Node, values: list[Any]) -> Sequence[Any]:
        with ExitStack() as stack:
            for raw in (*node.around, node.eqn.raw):
                stack.enter_context(_compat.context(raw))
            values = self._operands(node, values)
            outs = self._bind_node(node, values)
        name = self.name(node.eqn)
        if name not in self.decisions:
            self.decisions[name] = Decision(
                name=name, mode=node.mode, reason=node.reason, operands=_dtypes(values), results=_dtypes(outs)
            )
        return outs

    def _operands(self, node: Node, values: list[Any]) -> list[Any]:
        # A constant that the compute dtype cannot hold (1e-12, -1e30): done in float32, and rounded.
        if node.mode == "wide" or (node.mode == "narrow" and self._overflows(node)):
            return [self._as_traced(v, x) for v, x in zip(node.ins, values)]
        if node.mode in ("compute", "narrow"):
            return [self._narrowed(v, x) for v, x in zip(node.ins, values)]
        if node.mode == "as is" and node.eqn.primitive in COMPARISONS and len({jnp.result_type(x) for x in values}) > 1:
            return [self._as_traced(v, x) for v, x in zip(node.ins, values)]
        return values

    def _bind_node(self, node: Node, values: list[Any]) -> Sequence[Any]:
        eqn = node.eqn
        if node.mode == "call":
            return self._call_node(node, values)
        if node.mode == "compute":
            return self.compute(eqn, values)
        if eqn.primitive == "convert_element_type" and self._changes_nothing(eqn, values[0]):
            return values
        outs = self.bind(eqn, values)
        return [self._narrowed(v, x) for v, x in zip(node.outs, outs)] if node.mode == "narrow" else outs

    def _changes_nothing(self, eqn: Equation, value: Any) -> bool:
        given, wanted = eqn.in_avals[0], eqn.out_avals[0]
        return is_wide(given) and is_wide(wanted) and (self._is_narrow(value) or given.dtype == wanted.dtype)

    def compute(self, eqn: Equation, values: list[Any]) -> Sequence[Any]:
        """Run a dot or a convolution on operands in the compute dtype."""
        amax = self.site(eqn) if self.fp8 is not None else None
        if self.fp8 is not None and amax is not None:
            lhs, rhs = values
            return [fp8_dot(self.fp8, eqn, self.narrow, lhs, rhs, amax)]
        if not is_wide(eqn.out_avals[0]) or "preferred_element_type" not in eqn.params:
            return self.bind(eqn, values)
        return self.bind(eqn, values, preferred_element_type=self.narrow, precision=None)

    def _overflows(self, node: Node) -> bool:
        for value in node.ins:
            if value.literal is None or not value.wide_as_traced:
                continue
            was = np.asarray(value.literal, np.float64)
            now = np.asarray(np.asarray(value.literal).astype(self.narrow), np.float64)
            if np.any(np.isfinite(was) & (~np.isfinite(now) | ((now == 0) & (was != 0)))):
                return True
        return False

    def _call_node(self, node: Node, values: list[Any]) -> Sequence[Any]:
        eqn = node.eqn
        narrow = [out.state == "narrow" for out in node.outs]
        match eqn.primitive:
            case "scan":
                n_consts, n_carry = _compat.scan_counts(eqn.raw)
                carry = slice(n_consts, n_consts + n_carry)
                values[carry] = [self._as_traced(v, x) for v, x in zip(node.ins[carry], values[carry])]
            case "while":
                values = [self._as_traced(v, x) for v, x in zip(node.ins, values)]
            case "remat2" | "checkpoint":
                self._results[eqn.path] = [not one for one in narrow]
            case "custom_jvp_call":
                values = [self._narrowed(v, x) for v, x in zip(node.ins, values)]
                return _compat.bind_custom_jvp(eqn.raw, values, self._rule_to(eqn, narrow=True))
            case "custom_vjp_call":
                values = [self._narrowed(v, x) for v, x in zip(node.ins, values)]
                return _compat.bind_custom_vjp(eqn.raw, values, self._rule_to(eqn, narrow=any(narrow)))
        return self.default(eqn, values)

    def _rule_to(self, eqn: Equation, narrow: bool) -> Callable[..., list[Any]]:
        """Evaluate a function with its own derivative rule, and the rule, with floating results of one dtype."""
        run = self._rule(eqn)

        def evaluate(label: str, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
            # The backward rule gives the derivatives to operands, which are narrow.
            to_narrow = narrow or label == "bwd"
            self._outputs = [not (to_narrow and is_wide(_compat.aval(var))) for var in jaxpr.outvars]
            return run(label, jaxpr, consts, values)

        return evaluate

    def _as_traced(self, value: Value, x: Any) -> Any:
        dtype = value.aval.dtype if value.wide_as_traced else None
        return _cast(x, dtype) if dtype is not None and jnp.result_type(x) != dtype else x

    def _narrowed(self, value: Value, x: Any) -> Any:
        return _cast(x, self.narrow) if value.wide_as_traced and jnp.result_type(x) != self.narrow else x


def _state_outputs(traced: Traced) -> set[int]:
    """Outputs that are updated state: those with the path, below the first key, of an input of the same type."""
    own = {
        (path.partition("/")[2] or path, aval.shape, aval.dtype)
        for path, aval in zip((*traced.variables, *traced.inputs), traced.in_avals)
        if "/" in path
    }
    inner = {i for i, path in enumerate(traced.outputs) if (path.partition("/")[2], *_type(traced.out_avals[i])) in own}
    return inner | set(traced.updates)


def _type(aval: Any) -> tuple[Any, Any]:
    return aval.shape, aval.dtype


def _saved(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keep what a stretch compares, a byte a value, so that dropout's random bits are drawn once; and dots left in float32."""
    return primitive.name == "lt" or primitive.name in COMPUTE


def _read(env: Mapping[Value, Any], value: Value) -> Any:
    return env.get(value, value.literal)


def _cast(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if isinstance(x, np.ndarray | np.generic) else jax.lax.convert_element_type(x, dtype)


def _dtypes(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(jnp.result_type(value).name for value in values)
