"""Loops and branches: graphs within the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, helper

from lepton_jax.deploy.to_onnx.exporter import Exporter
from lepton_jax.deploy.to_onnx.file import type_of
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule, where
from lepton_jax.deploy.to_onnx.rules.reductions import reduced
from lepton_jax.deploy.to_onnx.tensors import Tensor, is_int
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.form import Native

_SHORT = 8
"""A scan of so many steps at most is written step by step."""


def info(name: str, shape: Sequence[Any], dtype: Any) -> Any:
    """Name, type and shape of an input or output."""
    return helper.make_tensor_value_info(name, type_of(dtype), [int(dim) if is_int(dim) else str(dim) for dim in shape])


def _entering(to: Exporter, avals: Sequence[Any]) -> tuple[list[Any], list[Tensor]]:
    tensors = [Tensor(to.file.fresh(), tuple(aval.shape), np.dtype(aval.dtype)) for aval in avals]
    return [info(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors], tensors


def body(to: Exporter, inputs: Sequence[Any], run: Callable[[], Sequence[Any]]) -> GraphProto:
    """A graph within the graph, of what `run` writes."""
    with to.file.inside() as nodes:
        values = [to.whole(value) for value in run()]
        # A graph's outputs must be made in it.
        names = [to.file.op("Identity", to.name_of(value)) for value in values]
        outputs = [info(name, np.shape(v) if not isinstance(v, Tensor) else v.shape, v.dtype) for name, v in zip(names, values)]
    return to.file.graph(to.file.fresh(), nodes, inputs, outputs)


def _as_list(outs: Any) -> list[str]:
    return outs if isinstance(outs, list) else [outs]


def _scan(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    consts, carries = _compat.scan_counts(eqn.raw)
    scanned, length = values[consts + carries :], eqn.params["length"]
    packed = any(isinstance(value, Native) for value in scanned)
    weights = any(not isinstance(value, Tensor | Native) and np.size(value) > length for value in scanned)
    if is_int(length) and (length <= _SHORT or packed or (weights and length <= 64)):
        return _unrolled(to, eqn, values, consts, carries)
    [inner] = eqn.bodies
    inputs, entering = _entering(to, [var.aval for var in inner.jaxpr.invars[consts:]])
    graph = body(to, inputs, lambda: to.inner(eqn, inner, [*values[:consts], *entering]))
    backwards, outs = int(eqn.params["reverse"]), len(eqn.outvars) - carries
    names = to.file.op(
        "Scan",
        *(to.name_of(value) for value in values[consts:]),
        outputs=len(eqn.outvars),
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_directions=[backwards] * len(scanned) or None,
        scan_output_directions=[backwards] * outs or None,
    )
    return [to.result(eqn, name, index) for index, name in enumerate(_as_list(names))]


def _unrolled(to: Exporter, eqn: Equation, values: Sequence[Any], consts: int, carries: int) -> list[Any]:
    [inner] = eqn.bodies
    length = eqn.params["length"]
    given, carry = values[:consts], list(values[consts : consts + carries])
    scanned = [value if isinstance(value, Native) else to.whole(value) for value in values[consts + carries :]]
    scanned = [_layers(to, value, length) for value in scanned]
    steps: list[list[Any]] = []
    for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
        outs = to.inner(eqn, inner, [*given, *carry, *(_slice(to, value, step) for value in scanned)])
        carry = outs[:carries]
        steps.append(outs[carries:])
    steps = steps[::-1] if eqn.params["reverse"] else steps
    stacked = []
    for index in range(carries, len(eqn.outvars)):
        parts = [to.file.op("Unsqueeze", to.name_of(one[index - carries]), to.file.ints([0])) for one in steps]
        stacked.append(to.result(eqn, to.file.op("Concat", *parts, axis=0), index))
    return [*carry, *stacked]


def _layers(to: Exporter, value: Any, length: int) -> Any:
    if not isinstance(value, Native):
        return value
    taken = value.layers(length)
    return np.asarray(value.dense()) if taken is None else (taken, value)


def _slice(to: Exporter, value: Any, step: int) -> Any:
    import jax

    if isinstance(value, tuple):
        taken, whole = value
        return jax.tree.map(lambda part: part[step], taken).taken(whole)
    if isinstance(value, Tensor):
        name = to.file.op("Gather", value.name, to.file.const(np.int64(step)), axis=0)
        return Tensor(name, value.shape[1:], value.dtype)
    return np.asarray(value)[step]


def _while(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    condition, inner = eqn.bodies
    n_cond = eqn.params["cond_nconsts"]
    n_consts = n_cond + eqn.params["body_nconsts"]
    first, second, start = values[:n_cond], values[n_cond:n_consts], values[n_consts:]

    def going(state: Sequence[Any]) -> tuple[Any, Any]:
        [each] = to.inner(eqn, condition, [*first, *state])
        if not np.ndim(each) and not isinstance(each, Tensor):
            return each, each
        return each, reduced(to, "ReduceMax", each, range(len(each.shape)), np.bool_) if each.shape else each

    inputs, state = _entering(to, eqn.out_avals)
    step = helper.make_tensor_value_info(to.file.fresh(), type_of(np.int64), [])
    on = helper.make_tensor_value_info(to.file.fresh(), type_of(np.bool_), [])

    def run() -> list[Any]:
        new = to.inner(eqn, inner, [*second, *state])
        each, _ = going(state)
        if each.shape:  # a loop under vmap: the examples that are done keep their state
            new = [_kept(to, each, n, s) for n, s in zip(new, state)]
        return [going(new)[1], *new]

    graph = body(to, [step, on, *inputs], run)
    names = to.file.op("Loop", "", to.name_of(going(start)[1]), *map(to.name_of, start), outputs=len(start), body=graph)
    return [to.result(eqn, name, index) for index, name in enumerate(_as_list(names))]


def _kept(to: Exporter, going: Any, new: Any, old: Tensor) -> Any:
    extra = old.ndim - len(going.shape)
    name = to.name_of(going)
    if extra:
        name = to.file.op("Unsqueeze", name, to.file.ints(range(len(going.shape), old.ndim)))
    mask = Tensor(name, old.shape, np.dtype(bool), held=(*going.shape, *[1] * extra))
    return where(to, mask, new, old)


def _cond(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    index, *operands = values
    if eqn.params.get("branches_platforms") is not None:
        platforms = eqn.params["branches_platforms"]
        chosen = next((i for i, one in enumerate(platforms) if one is None or "cpu" in one), 0)
        return to.inner(eqn, eqn.bodies[chosen], operands)
    if not isinstance(index, Tensor):
        return to.inner(eqn, eqn.bodies[int(np.clip(int(index), 0, len(eqn.bodies) - 1))], operands)

    def choose(branches: Sequence[Any], number: int) -> list[Any]:
        if len(branches) == 1:
            return to.inner(eqn, branches[0], operands)
        if index.dtype == bool:
            first = to.file.op("Not", index.name)
        else:
            first = to.file.op("LessOrEqual", index.name, to.file.const(np.asarray(number, index.dtype)))
        then = body(to, [], lambda: to.inner(eqn, branches[0], operands))
        other = body(to, [], lambda: choose(branches[1:], number + 1))
        names = to.file.op("If", first, outputs=len(eqn.outvars), then_branch=then, else_branch=other)
        return [to.result(eqn, name, place) for place, name in enumerate(_as_list(names))]

    return choose(eqn.bodies, 0)


LOOPS: dict[str, Rule] = {"scan": _scan, "while": _while, "cond": _cond}
