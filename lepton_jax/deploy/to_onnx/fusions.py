"""Several operations that an engine has as one: layer norm, softmax and gelu, found by what they compute.

However a model writes them, they are accepted only if their numbers are those of the one operation: a region of the graph
between a value and a result is run on random numbers, and held against the formula in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from lepton_jax.graph import _compat
from lepton_jax.graph.origins import Origins, origins
from lepton_jax.graph.primitives import ARITHMETIC, INLINED, names
from lepton_jax.graph.trace import CallPath, Equation, Traced, equations_of

Key = tuple[CallPath, Any]
"""(path of the jaxpr, variable)."""
_INSIDE = ARITHMETIC | names(
    "broadcast_in_dim reshape squeeze expand_dims reduce_sum reduce_max select_n eq ne lt gt erf erfc pjit jit custom_jvp_call"
)
_ANCHORS = {"rsqrt": "norm", "sqrt": "norm", "exp": "softmax", "tanh": "gelu", "erf": "gelu", "erfc": "gelu"}
_REACH = 16
"""How many operations after its most telling one a region ends at most."""
_LENGTH = 3
"""Of an axis of any length, while a region is tried."""
_TOLERANCE = 2e-5


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """One operation in place of several.

    Args:
      kind: ONNX's name.
      reads: the values that it reads.
      attributes: of the node.
    """

    kind: str
    reads: tuple[Key, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Region:
    """Operations between a value and a result, and the vectors of variables that they read beside it."""

    equations: tuple[Equation, ...]
    x: Any
    vectors: tuple[Any, ...]
    out: Any


def find(traced: Traced) -> dict[CallPath, Fusion]:
    """Return what can be one operation, by the path of the last operation of each region.

    Example:
      >>> graph = __import__("lepton_jax.graph.trace", fromlist=["trace"]).trace(
      ...     lambda v, x: jax.nn.softmax(x), {}, jnp.ones((2, 3))
      ... )
      >>> [(fusion.kind, fusion.attributes) for fusion in find(graph).values()]
      [('Softmax', {'axis': 1})]
    """
    found: dict[CallPath, Fusion] = {}
    known = origins(traced)
    tried: dict[str, tuple[str, dict[str, Any], tuple[int, ...]] | None] = {}
    for path, equations in _blocks(traced):
        for place, anchor in enumerate(equations):
            kind = _ANCHORS.get(anchor.primitive)
            if kind is None or anchor.out_avals[0].dtype != jnp.float32:
                continue
            for region in _regions(equations, place, path, known):
                text = f"{kind} {_text(region)}"
                if text not in tried:
                    tried[text] = _tried(kind, region)
                if (match := tried[text]) is not None:
                    operation, attributes, order = match
                    reads = (region.x, *(region.vectors[i] for i in order))
                    keys = tuple((path, var) for var in reads)
                    found[region.equations[-1].path] = Fusion(kind=operation, reads=keys, attributes=attributes)
                    break
    return found


def _blocks(traced: Traced) -> Iterator[tuple[CallPath, list[Equation]]]:
    """The operations of every jaxpr."""

    def inner(jaxpr: Any, path: CallPath, scope: str) -> Iterator[tuple[CallPath, list[Equation]]]:
        equations = list(equations_of(jaxpr, path, scope))
        yield path, equations
        for eqn in equations:
            for body in eqn.bodies:
                yield from inner(body.jaxpr, (*eqn.path, body.label), eqn.scope)

    yield from inner(traced.jaxpr, (), "")


def _regions(equations: Sequence[Equation], place: int, path: CallPath, known: Origins) -> Iterator[Region]:
    """Regions that hold an operation, the largest first."""
    makers = {var: eqn for eqn in equations for var in eqn.outvars}
    reached = set(equations[place].outvars)
    ends = []
    for eqn in equations[place + 1 : place + 1 + _REACH]:
        if any(not _compat.is_literal(v) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
            if eqn.primitive in ("add", "mul", "div", "sub"):
                ends.append(eqn)
    read = {var for eqn in equations for var in eqn.invars if not _compat.is_literal(var)}
    is_variable = {var: known.get((path, var)) is not None for var in read}
    for end in reversed(ends):
        [out] = end.outvars
        shape = out.aval.shape
        seen: list[Any] = []
        queue = [v for v in end.invars if not _compat.is_literal(v)]
        while queue and len(seen) < 40:
            var = queue.pop(0)
            if var in seen:
                continue
            seen.append(var)
            maker = makers.get(var)
            if maker is not None and maker.primitive in _INSIDE:
                queue += [v for v in maker.invars if not _compat.is_literal(v)]
        for x in reversed(seen):
            if getattr(x.aval, "shape", None) == shape and not is_variable.get(x, False) and x is not out:
                region = _between(x, end, makers, is_variable)
                if region is not None and equations[place] in region.equations:
                    yield region


def _between(x: Any, end: Equation, makers: Mapping[Any, Equation], is_variable: Mapping[Any, bool]) -> Region | None:
    """The operations that make a result of one value and vectors of variables; None if they read anything else."""
    inside: dict[CallPath, Equation] = {}
    vectors: list[Any] = []

    def visit(eqn: Equation) -> bool:
        if eqn.path in inside:
            return True
        if eqn.primitive not in _INSIDE or len(inside) > 40:
            return False
        for var in eqn.invars:
            if _compat.is_literal(var) or var is x:
                continue
            if is_variable.get(var, False) and all(n == 1 for n in var.aval.shape[:-1]) and var.aval.shape:
                vectors.extend([] if var in vectors else [var])
            elif var not in makers or not visit(makers[var]):
                return False
        inside[eqn.path] = eqn
        return True

    if not visit(end):
        return None
    ordered = tuple(sorted(inside.values(), key=lambda eqn: eqn.path[-1]))
    return Region(equations=ordered, x=x, vectors=tuple(vectors), out=end.outvars[0])


def _text(region: Region) -> str:
    """What tells regions apart: operations, parameters, shapes, and what reads what."""
    number: dict[Any, int] = {region.x: 0}
    for vector in region.vectors:
        number[vector] = len(number)
    lines = [str((region.x.aval.str_short(), [v.aval.str_short() for v in region.vectors]))]
    for eqn in region.equations:
        reads = [str(v.val) if _compat.is_literal(v) else number[v] for v in eqn.invars]
        number.update({var: len(number) + i for i, var in enumerate(eqn.outvars)})
        inner = [str(body.jaxpr) for body in eqn.bodies]
        params = {} if eqn.bodies else {k: v for k, v in eqn.params.items() if k != "sharding"}
        lines.append(f"{eqn.primitive} {params} {inner} {reads} {number[eqn.outvars[0]]}")
    return "\n".join(lines)


def _tried(kind: str, region: Region) -> tuple[str, dict[str, Any], tuple[int, ...]] | None:
    """(operation, attributes, order of the vectors) of a region that computes one; None for another."""
    shape = tuple(_small(dim) for dim in region.x.aval.shape)
    random = np.random.default_rng(7)
    x = random.normal(0.5, 2, shape).astype(np.float32)
    vectors = [random.normal(1, 0.5, [_small(dim) for dim in v.aval.shape]).astype(np.float32) for v in region.vectors]
    try:
        got = _run(region, x, vectors)
    except Exception:  # whatever an operation raises at these shapes
        return None
    wide = x.astype(np.float64)
    for operation, attributes, order, expected in _candidates(kind, region, wide, vectors):
        scale = 1 + np.abs(expected).max(initial=0)
        if got.shape == expected.shape and np.abs(got - expected).max(initial=0) < _TOLERANCE * scale:
            return operation, attributes, order
    return None


def _candidates(
    kind: str, region: Region, x: np.ndarray, vectors: Sequence[np.ndarray]
) -> Iterator[tuple[str, dict[str, Any], tuple[int, ...], np.ndarray]]:
    if kind == "softmax" and not vectors:
        axes = {eqn.params["axes"] for eqn in region.equations if eqn.primitive == "reduce_sum"}
        for axis in (axes_[0] for axes_ in axes if len(axes_) == 1):
            power = np.exp(x - x.max(axis, keepdims=True))
            yield "Softmax", {"axis": int(axis)}, (), power / power.sum(axis, keepdims=True)
    elif kind == "gelu" and not vectors:
        yield "Gelu", {"approximate": "none"}, (), x * (1 + erf(x / math.sqrt(2))) / 2
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        yield "Gelu", {"approximate": "tanh"}, (), x * (1 + np.tanh(inner)) / 2
    elif kind == "norm" and len(vectors) in (1, 2) and x.shape and x.shape[-1] > 1:
        mean = x.mean(-1, keepdims=True)
        for epsilon in _epsilons(region):
            normal = (x - mean) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
            for order in itertools.permutations(range(len(vectors))):
                scaled = normal * vectors[order[0]]
                expected = sum((vectors[i] for i in order[1:]), scaled)
                yield "LayerNormalization", {"axis": -1, "epsilon": epsilon}, order, expected


def _epsilons(region: Region) -> list[float]:
    literals = [v for eqn in region.equations for v in eqn.invars if _compat.is_literal(v)]
    values = [float(np.asarray(literal.val)) for literal in literals if np.ndim(literal.val) == 0]
    return sorted({value for value in values if 0 < value < 0.1})


def _small(dim: Any) -> int:
    return _compat.concrete(dim, _LENGTH)


def _run(region: Region, x: np.ndarray, vectors: Sequence[np.ndarray]) -> np.ndarray:
    env = {region.x: jnp.asarray(x), **dict(zip(region.vectors, map(jnp.asarray, vectors)))}
    with jax.ensure_compile_time_eval():
        _evaluate([eqn.raw for eqn in region.equations], env)
    return np.asarray(env[region.out], np.float64)


def _evaluate(equations: Sequence[Any], env: dict[Any, Any]) -> None:
    for eqn in equations:
        values = [_compat.literal_value(v) if _compat.is_literal(v) else env[v] for v in eqn.invars]
        if eqn.primitive.name in INLINED:
            [body] = _compat.bodies(eqn)
            inner: dict[Any, Any] = dict(zip([*body.jaxpr.constvars, *body.jaxpr.invars], [*body.consts, *values]))
            _evaluate(body.jaxpr.eqns, inner)
            outs = [_compat.literal_value(v) if _compat.is_literal(v) else inner[v] for v in body.jaxpr.outvars]
        else:
            changed = {name: _concrete(value) for name, value in eqn.params.items()}
            outs = _compat.bind(eqn, values, **changed)
        env.update(zip(eqn.outvars, outs))


def _concrete(value: Any) -> Any:
    """A parameter with numbers for symbolic lengths."""
    if isinstance(value, tuple) and any(hasattr(dim, "get_vars") for dim in value):
        return tuple(map(_small, value))
    return value
