"""Rematerialisation: what the forward pass keeps for the backward one, within a budget of bytes; the rest is computed again."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.cost import macs, nbytes
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import OWN_DERIVATIVES, PRODUCTS, RAGGED, REMATS, names
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace
from lepton_jax.precision.plan import Flat, Node, Value

_NAME = "lepton_jax: kept for the backward pass"
_KEPT = jax.checkpoint_policies.save_only_these_names(_NAME)
_CLOSED = REMATS | OWN_DERIVATIVES | names("while cond shard_map")
"""Calls that decide for themselves what they keep."""


@checked
def remat(apply: Apply, *, budget: int | None = None) -> Apply:
    """Return `apply` whose backward pass finds products kept and computes everything else again.

    The graph is cut where little is alive: before and after scans over layers, between the steps of a scan, and elsewhere into
    about as many segments as the root of the number of its products. Of each segment its inputs are kept and, inside, results
    of dots and convolutions: those with the most multiplications a byte first, so that attention's weights are computed again
    before the products with kernels are. What a model says itself by `jax.checkpoint` or a derivative rule stays so.

    What a compiled step holds at once is the compiler's choice. Between the steps of a scan it fell (temporary arrays of a
    decoder of 6 scanned layers: 183 to 79 MB, 34 at the least budget); of the same layers one after the other XLA on CPU,
    which orders operations without regard to memory, held as much as before. Scan layers.

    Values are the same; gradients are those of the same operations, to the bit if they are run one by one (a compiler may
    round fused ones otherwise). With `autocast`, cast first, ``remat(autocast(apply, policy))``: then bytes are counted in its
    dtypes.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      budget: bytes that may be kept, as `residual_bytes` counts them; None keeps all products.

    Returns:
      function of the same arguments; it works under jit, grad and scan. Call it under jit.

    Raises:
      ValueError: when called, if the budget is less than what is kept without any product; the message says what that is.

    Example:
      >>> import jax.numpy as jnp
      >>> def apply(params, x):
      ...     return jnp.sin(jnp.exp(jnp.tanh(x @ params["w"]))) @ params["v"]
      >>> params, x = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 1))}, jnp.ones((8, 4))
      >>> residual_bytes(apply, params, x), residual_bytes(remat(apply), params, x)
      (640, 128)

    Source: Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear memory cost" (segments); Korthikanti et al. 2022,
    "Reducing activation recomputation in large transformer models", section 5 (selective: by operations a byte).
    """
    if budget is not None:
        check_whole("remat: budget", budget, 0)

    @wraps(apply)
    def rematerialized(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        traced = trace(apply, variables, *inputs, **static)
        ranked = _ranked(traced)
        kept = ranked if budget is None else _within(traced, ranked, budget, variables, inputs, static)
        return _Remat(traced, kept)(variables, *inputs, **static)

    return rematerialized


@checked
def residual_bytes(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> int:
    """Count the bytes that the forward pass makes and keeps for the gradient by the variables; nothing is computed.

    Variables and inputs themselves are not counted: they are there anyway. A compiler may keep less, where it fuses.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      variables: arrays, or their shapes; floating.
      *inputs: likewise, of any dtype.
      **static: keywords of `apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> residual_bytes(lambda w, x: jnp.exp(x @ w), jnp.ones((3, 2)), jnp.ones((5, 3)))
      40
    """

    def forward(variables: PyTree, *inputs: Any) -> Any:
        return jax.vjp(lambda given: apply(given, *inputs, **static), variables)[1]

    jaxpr = jax.make_jaxpr(forward)(variables, *inputs).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    kept = {var for var in jaxpr.outvars if not _compat.is_literal(var)} - given
    return sum(nbytes(_compat.aval(var)) for var in kept)


def _ranked(traced: Traced) -> list[CallPath]:
    """Return the products that can be kept, those with the most multiplications a byte first."""
    closed, found = set[CallPath](), []
    for eqn in traced.equations():
        inside = any(eqn.path[:size] in closed for size in range(len(eqn.path)))
        if inside or eqn.primitive in _CLOSED:
            closed.add(eqn.path)
        elif eqn.primitive in PRODUCTS | RAGGED:
            found.append((macs(eqn) / max(nbytes(eqn.out_avals[0]), 1), eqn.path))
    return [path for _, path in sorted(found, key=lambda one: -one[0])]


def _within(
    traced: Traced, ranked: Sequence[CallPath], budget: int, variables: PyTree, inputs: Sequence[Any], static: dict[str, Any]
) -> Sequence[CallPath]:
    """Return as many of the products, from the first on, as a budget has room for."""

    def bytes_of(count: int) -> int:
        return residual_bytes(lambda v, *x: _Remat(traced, ranked[:count])(v, *x, **static), variables, *inputs)

    least = bytes_of(0)
    if least > budget:
        raise ValueError(
            f"remat: a budget of {budget:,} bytes is too small: {least:,} are kept between the segments alone. Give more, or "
            "fewer examples at once."
        )
    fits, too_many = 0, len(ranked) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if bytes_of(middle) <= budget else (fits, middle)
    return ranked[:fits]


class _Remat(Interpreter):
    """Evaluates a graph in segments, each rematerialised but for the products that are kept."""

    def __init__(self, traced: Traced, kept: Sequence[CallPath]):
        super().__init__(traced)
        self.kept = frozenset(kept)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        """Mark what is kept."""
        return [checkpoint_name(out, _NAME) for out in self.bind(eqn, values)] if eqn.path in self.kept else None

    def inner(self, eqn: Equation, body: _compat.Body, values: Sequence[Any]) -> list[Any]:
        """Evaluate a body; a step of a scan is a segment."""
        run = partial(super().inner, eqn, body)
        if eqn.primitive != "scan":
            return run(values)
        return jax.checkpoint(lambda *given: run(given), prevent_cse=False, policy=_KEPT)(*values)

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        """Evaluate a jaxpr; the outermost in segments."""
        if path:
            return super().evaluate(jaxpr, consts, values, path, scope)
        inputs, flat = [Value(jax.typeof(value)) for value in values], Flat()
        outputs = flat.body(jaxpr, consts, inputs, path, scope)
        env: dict[Value, Any] = {**flat.held, **dict(zip(inputs, values))}
        last = {value: place for place, node in enumerate(flat.nodes) for value in node.ins}
        last.update(dict.fromkeys(outputs, len(flat.nodes)))
        start = 0
        for end in _ends(flat.nodes, last):
            self._segment(flat.nodes[start:end], end, last, env)
            start = end
        return [_read(env, value) for value in outputs]

    def _segment(self, nodes: Sequence[Node], end: int, last: dict[Value, int], env: dict[Value, Any]) -> None:
        """Evaluate some operations, and put what is used after them in `env`."""
        made = [out for node in nodes for out in node.outs]
        own = set(made)
        given = list({value: None for node in nodes for value in node.ins if value not in own and value in env})
        leaving = [value for value in made if last.get(value, -1) >= end]

        def run(*arrays: Any) -> list[Any]:
            local = dict(zip(given, arrays))
            for node in nodes:
                local.update(zip(node.outs, self._run(node, [_read(local, value) for value in node.ins])))
            return [local[value] for value in leaving]

        if nodes[0].eqn.primitive != "scan":
            run = jax.checkpoint(run, policy=_KEPT)
        env.update(zip(leaving, run(*(env[value] for value in given))))

    def _run(self, node: Node, values: Sequence[Any]) -> Sequence[Any]:
        with ExitStack() as stack:
            for raw in (*node.around, node.eqn.raw):
                stack.enter_context(_compat.context(raw))
            outs = self.handle(node.eqn, values)
            return self.default(node.eqn, values) if outs is None else outs


def _ends(nodes: Sequence[Node], last: dict[Value, int]) -> list[int]:
    """Return where segments end: around scans, and in what is between where least is alive."""
    scans = [place for place, node in enumerate(nodes) if node.eqn.primitive == "scan"]
    bounds = sorted({0, len(nodes), *scans, *(place + 1 for place in scans)})
    alive = _alive(nodes, last)
    ends: list[int] = []
    for start, end in itertools.pairwise(bounds):
        products = [place for place in range(start, end) if nodes[place].eqn.primitive in PRODUCTS | RAGGED]
        number = max(1, round(len(products) ** 0.5))
        for cut in range(1, number):
            low, high = (products[int((cut + by) * len(products) / number)] for by in (-0.5, 0.5 - 1e-9))
            # The latest of the best: after a residual sum rather than before the norm that follows it.
            ends.append(min(range(low + 1, high + 1), key=lambda place: (alive[place], -place), default=end))
        ends.append(end)
    return sorted(set(ends))


def _alive(nodes: Sequence[Node], last: dict[Value, int]) -> list[int]:
    """Return how many bytes, of what operations made, are used at or after each place."""
    change = [0] * (len(nodes) + 2)
    for place, node in enumerate(nodes):
        for out in node.outs:
            if last.get(out, -1) > place:
                change[place + 1] += nbytes(out.aval)
                change[last[out] + 1] -= nbytes(out.aval)
    total, alive = 0, []
    for one in change:
        total += one
        alive.append(total)
    return alive


def _read(env: dict[Value, Any], value: Value) -> Any:
    return env.get(value, value.literal)
