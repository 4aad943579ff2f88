"""Access to the parts of a jaxpr that move between jax versions; the only file that touches them.

jax 0.10: a `ClosedJaxpr` is a `Jaxpr` with its consts; scan has `num_consts` and `num_carry`. jax 0.11: both are one
class, and scan describes its operands by trees (`ft_in`). Everything else here is alike in both.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import linear_util, source_info_util
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.interpreters import partial_eval

OLDEST, NEWEST = (0, 10), (0, 12)
"""Supported versions of jax: from OLDEST on, below NEWEST."""

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
}
_WRAPPED = re.compile(r"\b(?:vmap|jvp|transpose|jit|pmap)\(([^()]*)\)")
# These hold a jaxpr for the combination of two scalars, which is no place where a model computes.
_COMBINERS = ("reduce", "scatter", "select_and", "sort", "cumred", "argm")


def check_version(version: str = jax.__version__) -> None:
    """Raise unless this version of jax is one whose jaxprs are understood here.

    Raises:
      ImportError: for a version out of range.

    Example:
      >>> check_version("0.9.1")
      Traceback (most recent call last):
      ...
      ImportError: lepton_jax.graph reads jaxprs, whose form changes between versions of jax. It needs jax >= 0.10 and
      < 0.12; got 0.9.1. Install a supported one: pip install 'jax>=0.10,<0.12'.
    """
    number = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= number < NEWEST:
        low, high = (".".join(map(str, v)) for v in (OLDEST, NEWEST))
        raise ImportError(
            f"lepton_jax.graph reads jaxprs, whose form changes between versions of jax. It needs jax >= {low} and "
            f"< {high}; got {version}. Install a supported one: pip install 'jax>={low},<{high}'."
        )


check_version()


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """An inner jaxpr of a call, and how its inputs and outputs are tied to those of the equation that holds it.

    Inner input `i` is operand `operands[i]` of the equation (one slice of its leading axis if `i` is in `scanned_in`);
    inner output `j` is result `results[j]` (one slice of it if `j` is in `scanned_out`). `carry` holds the pairs
    (inner output, inner input) that a loop ties together. `times` is how often the body runs, None where unknown. What is
    handed out of the body has a leading axis of length `stack`, if that is not None. In a `shard_map`, axis `a` of operand
    `i` comes in ``parts_in[i][a]`` equal parts, of which the body has one, and result `j` likewise of ``parts_out[j][a]``.
    """

    label: str
    jaxpr: Jaxpr
    consts: Sequence[Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    scanned_in: frozenset[int] = frozenset()
    scanned_out: frozenset[int] = frozenset()
    carry: tuple[tuple[int, int], ...] = ()
    times: int | None = 1
    stack: int | None = None
    parts_in: tuple[tuple[int, ...], ...] = ()
    parts_out: tuple[tuple[int, ...], ...] = ()


def as_function(closed: Any) -> Callable[..., Sequence[Any]]:
    """The function of flat arrays that a closed jaxpr is."""
    return jaxpr_as_fun(closed)


def is_literal(atom: Any) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(atom, Literal)


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter is a jaxpr, open or closed."""
    return isinstance(value, Jaxpr | ClosedJaxpr)


def open_jaxpr(jaxpr: Any) -> Jaxpr:
    """The `Jaxpr` with `constvars`, `invars`, `eqns` and `outvars`, from either class."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def consts_of(jaxpr: Any) -> Sequence[Any]:
    """The values of the constvars; none for an open jaxpr."""
    return getattr(jaxpr, "consts", ())


def aval(atom: Any) -> Any:
    """The shape and dtype of an operand or a result, as traced."""
    return atom.aval


def with_params(eqn: JaxprEqn, **changed: Any) -> JaxprEqn:
    """The equation with some of its parameters changed."""
    return eqn.replace(params={**eqn.params, **changed})


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """The numbers of a scan's constants and of its carries."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def bodies(eqn: JaxprEqn) -> tuple[Body, ...]:
    """The inner jaxprs of a call or loop; none for an ordinary operation or an unknown call."""
    name, params = eqn.primitive.name, eqn.params
    n_in, results = len(eqn.invars), tuple(range(len(eqn.outvars)))
    if name == "scan":
        n_consts, n_carry = scan_counts(eqn)
        scanned_in, scanned_out = frozenset(range(n_consts + n_carry, n_in)), frozenset(results[n_carry:])
        carry = tuple((i, n_consts + i) for i in range(n_carry))
        ends = {
            "scanned_in": scanned_in,
            "scanned_out": scanned_out,
            "carry": carry,
            "times": params["length"],
            "stack": params["length"],
        }
        return (_body("body", params["jaxpr"], range(n_in), results, **ends),)
    if name == "while":
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        state, carry = range(n_cond + n_body, n_in), tuple((i, n_body + i) for i in results)
        return (
            _body("cond", params["cond_jaxpr"], (*range(n_cond), *state), (), times=None),
            _body("body", params["body_jaxpr"], range(n_cond, n_in), results, carry=carry, times=None),
        )
    if name == "cond":
        return tuple(_body(f"branch{i}", branch, range(1, n_in), results) for i, branch in enumerate(params["branches"]))
    if name == "shard_map":
        mesh, specs_in, specs_out = params["mesh"], params["in_specs"], params["out_specs"]
        used = {axis for spec in (*specs_in, *specs_out) for axis in _spec_axes(spec)}
        shards = {
            "times": math.prod(mesh.shape[axis] for axis in used),
            "stack": math.prod(mesh.shape[axis] for axis in manual_axes(eqn)),
            "parts_in": tuple(_parts(mesh, spec, aval(var)) for spec, var in zip(specs_in, eqn.invars)),
            "parts_out": tuple(_parts(mesh, spec, aval(var)) for spec, var in zip(specs_out, eqn.outvars)),
        }
        return (_body("shard", params["jaxpr"], range(n_in), results, **shards),)
    return (_body("call", params[_CALLS[name]], range(n_in), results),) if name in _CALLS else ()


def manual_axes(eqn: JaxprEqn) -> tuple[str, ...]:
    """The mesh axes over which a `shard_map` takes arrays apart, in the order of the mesh."""
    params = eqn.params
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    return tuple(axis for axis in params["mesh"].axis_names if axis in manual)


def _spec_axes(spec: Any) -> Iterator[str]:
    for entry in spec:
        yield from () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _parts(mesh: Any, spec: Any, shaped: Any) -> tuple[int, ...]:
    """Into how many equal parts a spec takes every axis."""
    entries = [*spec, *[None] * (len(shaped.shape) - len(spec))]
    return tuple(math.prod(mesh.shape[axis] for axis in _spec_axes([entry])) for entry in entries)


def bind_shard_map(
    eqn: JaxprEqn,
    values: Sequence[Any],
    sites: Any,
    body: Callable[[Sequence[Any], Any], tuple[Sequence[Any], Any]],
    sites_per_device: bool,
) -> tuple[list[Any], Any]:
    """Rebuild a `shard_map` around another body: ``(operands, sites) -> (results, emitted)``.

    What is emitted has, outside, one slice for each device along a leading axis; so have `sites`, or they are whole on each.
    """
    params, manual = eqn.params, manual_axes(eqn)
    per_device, whole = jax.sharding.PartitionSpec(manual), jax.sharding.PartitionSpec()

    def run(operands: Sequence[Any], own: Any) -> tuple[Sequence[Any], Any]:
        own = jax.tree.map(lambda leaf: leaf[0], own) if sites_per_device else own
        results, emitted = body(operands, own)
        return list(results), jax.tree.map(lambda leaf: _varying(leaf[None], manual, params["check_vma"]), emitted)

    mapped = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=(list(params["in_specs"]), per_device if sites_per_device else whole),
        out_specs=(list(params["out_specs"]), per_device),
        axis_names=set(manual),
        check_vma=params["check_vma"],
    )
    results, emitted = mapped(list(values), sites)
    return list(results), emitted


def _varying(leaf: Any, manual: Sequence[str], checked: bool) -> Any:
    """The value as one that may differ from device to device, as an output of one slice for each must be."""
    kind: Any = jax.typeof(leaf)
    varying = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    missing = tuple(axis for axis in manual if axis not in varying) if checked else ()
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def _body(label: str, jaxpr: Any, operands: Iterable[int], results: tuple[int, ...], **ends: Any) -> Body:
    return Body(
        label=label, jaxpr=open_jaxpr(jaxpr), consts=consts_of(jaxpr), operands=tuple(operands), results=results, **ends
    )


def is_opaque(eqn: JaxprEqn) -> bool:
    """Whether an operation holds computations that `bodies` doesn't show (a linear solve, a kernel)."""
    name = eqn.primitive.name
    if bodies(eqn) or name.startswith(_COMBINERS):
        return False
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
    return any(is_jaxpr(leaf) for leaf in leaves) or name == "call_hi_primitive"


def used_inputs(jaxpr: Any, used_outputs: Sequence[bool]) -> list[bool]:
    """Which inputs of an open jaxpr some of its outputs depend on, through calls and loops."""
    return list(partial_eval.dce_jaxpr(jaxpr, list(used_outputs))[1])


def literal_value(atom: Any) -> Any:
    """The value of a literal, with its own dtype."""
    if isinstance(atom.val, bool | int | float | complex):
        return np.asarray(atom.val, atom.aval.dtype)
    return atom.val


def concrete(dim: Any, length: int = 96) -> int:
    """The length of an axis; for a symbolic one (`jax.export.symbolic_shape`) a stand-in, alike for equal expressions.

    Its names are so long; by default divisible by much, so that an axis which the program may halve can be halved here.
    """
    if isinstance(dim, int | np.integer):
        return int(dim)
    return int(dim._evaluate(dict.fromkeys(dim.get_vars(), length)))


def scope_of(eqn: JaxprEqn) -> str:
    """The equation's name scopes within its own jaxpr, joined by '/', without the transformations that wrap them."""
    name = str(eqn.source_info.name_stack)
    while (bare := _WRAPPED.sub(r"\1", name)) != name:
        name = bare
    return "/".join(part for part in name.split("/") if part)


@contextmanager
def context(eqn: JaxprEqn) -> Iterator[None]:
    """Re-enter the name scope, the source line and the settings under which an equation was traced."""
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with source_info_util.user_context(eqn.source_info.traceback, name_stack=names), eqn.ctx.manager:
        yield


def bind(eqn: JaxprEqn, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Apply the equation's primitive to arrays, with its own parameters but for those in `changed`."""
    params = {**eqn.params, **changed} if changed else eqn.params
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


Evaluate = Callable[[str, Jaxpr, Sequence[Any], Sequence[Any]], list[Any]]
"""(label, jaxpr, consts, values) -> outputs."""


def bind_custom_jvp(eqn: JaxprEqn, values: Sequence[Any], evaluate: Evaluate) -> list[Any]:
    """Rebuild a `custom_jvp_call`, its function and its derivative rule both run by `evaluate`.

    The rule is the jaxpr that `jvp_jaxpr_fun` gives for a pattern of zero tangents; inlining the function instead would
    exchange the rule for the derivative of the body (relu's at 0 would become 1/2).
    """
    params = eqn.primitive.get_bind_params(eqn.params)
    fun, jvp = params.pop("subfuns")
    body, rule, n_consts = eqn.params["call_jaxpr"], eqn.params["jvp_jaxpr_fun"], eqn.params["num_consts"]

    def new_fun(*args: Any) -> list[Any]:
        return evaluate("call", open_jaxpr(body), consts_of(body), args)

    def new_jvp(*args: Any) -> list[Any]:
        half = len(args) // 2
        primals, tangents = args[n_consts:half], args[half + n_consts :]
        zeros = [type(t) is SymbolicZero for t in tangents]
        jaxpr, consts, out_zeros = rule.call_wrapped(*zeros)
        given = [t for t, zero in zip(tangents, zeros) if not zero]
        outs = evaluate("jvp", open_jaxpr(jaxpr), consts, [*primals, *given])
        primals_out, rest = outs[: len(out_zeros)], iter(outs[len(out_zeros) :])
        tangents_out = [
            SymbolicZero(jax.typeof(p).to_tangent_aval()) if zero else next(rest) for p, zero in zip(primals_out, out_zeros)
        ]
        return [*primals_out, *tangents_out]

    subfuns = (
        linear_util.wrap_init(new_fun, debug_info=fun.debug_info),
        linear_util.wrap_init(new_jvp, debug_info=jvp.debug_info),
    )
    return list(eqn.primitive.bind(*values, subfuns=subfuns, **params))


def bind_custom_vjp(eqn: JaxprEqn, values: Sequence[Any], evaluate: Evaluate) -> list[Any]:
    """Rebuild a `custom_vjp_call`: its function, its forward and its backward rule run by `evaluate`.

    The backward rule is a Python function that checks for the shapes it was traced with. It is called as it is while the
    shapes are those; under other shapes it is traced at its own and the jaxpr evaluated.
    """
    params = eqn.primitive.get_bind_params(eqn.params)
    fun, fwd, bwd = params.pop("subfuns")
    body, rule, n_consts = eqn.params["call_jaxpr"], eqn.params["fwd_jaxpr_thunk"], eqn.params["num_consts"]

    def new_fun(*args: Any) -> list[Any]:
        return evaluate("call", open_jaxpr(body), consts_of(body), args)

    def new_fwd(*args: Any) -> list[Any]:
        primals, nonzeros = args[::2], args[1::2]
        if any(nonzeros[:n_consts]):
            raise TypeError(
                f"{eqn.primitive.name}: a value that the function closes over is differentiated, which jax.custom_vjp "
                "does not allow. Pass it as an argument."
            )
        jaxpr, consts = rule.call_wrapped(*nonzeros[n_consts:])
        return evaluate("fwd", open_jaxpr(jaxpr), consts, primals[n_consts:])

    changed = any(
        (np.shape(v), jax.dtypes.result_type(v)) != (aval(var).shape, aval(var).dtype) for v, var in zip(values, eqn.invars)
    )
    subfuns = (
        linear_util.wrap_init(new_fun, debug_info=fun.debug_info),
        linear_util.wrap_init(new_fwd, debug_info=fwd.debug_info),
        _bwd_at_other_shapes(eqn, values, bwd, params["out_trees"], evaluate) if changed else bwd,
    )
    return list(eqn.primitive.bind(*values, subfuns=subfuns, **params))


def _bwd_at_other_shapes(eqn: JaxprEqn, values: Sequence[Any], bwd: Any, out_trees: Any, evaluate: Evaluate) -> Any:
    def new_bwd(*args: Any) -> Any:
        _, _, forwarded = out_trees()
        in_avals = [aval(var) for var in eqn.invars]
        fwd, _ = fwd_jaxpr(eqn, [True] * (len(in_avals) - eqn.params["num_consts"]))
        saved = iter(fwd.outvars)
        residuals = [aval(next(saved)) if i is None else in_avals[i] for i in forwarded]
        avals = [*residuals, *(aval(var).to_tangent_aval() for var in saved)]
        result: list[Any] = []

        def traced(*xs: Any) -> list[Any]:
            result.append(bwd.call_wrapped(*xs))
            return [ct for ct in _cotangents(result[0]) if not _is_zero(ct)]

        closed = jax.make_jaxpr(traced)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
        given = iter(evaluate("bwd", open_jaxpr(closed), consts_of(closed), args))
        cts = [
            type(ct)(jax.typeof(v).to_tangent_aval()) if _is_zero(ct) else next(given)
            for ct, v in zip(_cotangents(result[0]), values)
        ]
        return (cts, result[0][1]) if _has_logs(result[0]) else cts

    return linear_util.wrap_init(new_bwd, debug_info=bwd.debug_info)


def saved_sources(eqn: JaxprEqn) -> list[int | None]:
    """For everything that the forward rule of a `custom_vjp_call` saved: which operand it is, or None for a new value."""
    _, _, forwarded = eqn.params["out_trees"]()
    return list(forwarded)


def _has_logs(result: Any) -> bool:
    """jax 0.11 returns (cotangents, logs) from a backward rule, 0.10 the cotangents."""
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], list | tuple)


def _cotangents(result: Any) -> Sequence[Any]:
    return result[0] if _has_logs(result) else result


def _is_zero(cotangent: Any) -> bool:
    return type(cotangent).__name__ in ("Zero", "SymbolicZero")


def fwd_jaxpr(eqn: JaxprEqn, nonzeros: Sequence[bool]) -> tuple[Jaxpr, Sequence[Any]]:
    """The forward rule of a `custom_vjp_call` for a pattern of differentiated operands: (jaxpr, consts)."""
    jaxpr, consts = eqn.params["fwd_jaxpr_thunk"].call_wrapped(*nonzeros)
    return open_jaxpr(jaxpr), consts
