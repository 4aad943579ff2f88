"""Indices within bounds: XLA clamps them, LiteRT fails, or reads what is beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_jax.deploy.to_litert.points import operations


def bounded(module: Any, ir: Any) -> None:
    """Clamp the indices of every ``stablehlo.gather`` whose operand has known lengths, as XLA does.

    Args:
      module: changed in place.
      ir: its bindings of MLIR.
    """
    for gather in operations(module.operation):
        if gather.name == "stablehlo.gather":
            _bound(gather, ir)


def _bound(gather: Any, ir: Any) -> None:
    operand, indices = (ir.RankedTensorType(value.type) for value in gather.operands)
    numbers = _numbers(str(gather.attributes["dimension_numbers"]))
    axes, along = numbers["start_index_map"], numbers["index_vector_dim"][0]
    if any(operand.is_dynamic_dim(axis) for axis in axes):
        return
    sizes = [int(size) for size in ir.DenseI64ArrayAttr(gather.attributes["slice_sizes"])]
    most = np.array([operand.get_dim_size(axis) - sizes[axis] for axis in axes])
    shape = [1] * indices.rank
    if along < indices.rank:
        shape[along] = len(axes)
    if any(indices.is_dynamic_dim(axis) for axis in range(indices.rank)):
        if len(set(most.tolist())) > 1:
            return
        bounds = [np.zeros((), np.int64), np.asarray(most[0])]  # one number serves all lengths
    else:
        full = [indices.get_dim_size(axis) for axis in range(indices.rank)]
        bounds = [np.zeros(full, np.int64), np.broadcast_to(most.reshape(shape), full)]
    with ir.InsertionPoint(gather), ir.Location.unknown():
        low, high = (_constant(bound, indices.element_type, ir) for bound in bounds)
        made = ir.Operation.create(
            "stablehlo.clamp", results=[gather.operands[1].type], operands=[low, gather.operands[1], high]
        )
    gather.operands[1] = made.results[0]


def _constant(value: np.ndarray, kind: Any, ir: Any) -> Any:
    bits = ir.IntegerType(kind)
    dtype = np.dtype(f"{'u' if bits.is_unsigned else ''}int{bits.width}")
    made = ir.DenseElementsAttr.get(np.ascontiguousarray(value, dtype), type=kind)
    return ir.Operation.create("stablehlo.constant", results=[made.type], attributes={"value": made}).results[0]


def _numbers(text: str) -> dict[str, list[int]]:
    """The lists of a gather's dimension numbers, as they are printed."""
    inner = text[text.index("<") + 1 : text.rindex(">")]
    found = {name: [0] for name in ("start_index_map", "index_vector_dim")}
    for name in found:
        if name in inner:
            tail = inner.split(f"{name} = ", 1)[1]
            words = tail[1 : tail.index("]")] if tail.startswith("[") else tail.split(",")[0]
            found[name] = [int(word) for word in words.split(",") if word.strip()]
    return found
