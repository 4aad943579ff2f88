"""Evaluating a graph on names: every operation writes nodes, and what depends on constants alone is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.core.errors import one_line
from lepton_jax.deploy.to_onnx.file import File
from lepton_jax.deploy.to_onnx.fusions import Fusion, Key
from lepton_jax.deploy.to_onnx.tensors import Dims, Spread, Tensor, inverse, is_int, same
from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import ARITHMETIC, COMPARISONS, INLINED, names
from lepton_jax.graph.trace import CallPath, Equation, Traced
from lepton_jax.leaves.form import Native

WORK = {"bfloat16": np.float32, **dict.fromkeys(["int8", "int16", "uint8", "uint16"], np.int32), "uint32": np.int64}
"""In which type an engine computes with elements for which it has no operations."""


ELEMENTWISE_NAMES = ARITHMETIC | COMPARISONS | names("and or xor not select_n clamp floor ceil round rem")


class Unsupported(Exception):
    """An operation that has no form in ONNX, or not with these parameters."""


class Exporter(Interpreter):
    """Writes a graph into a file. Values are a `Tensor`, a constant array, a `Spread` constant, or a packed leaf.

    Args:
      traced: the graph, of dense leaves.
      rules: how each operation is written: ``rule(exporter, eqn, values)`` gives its results, or None if it is not its own.
      fused: results that one node makes of several operations; see `fusions`.
      rounds_activations: whether an engine may round what meets codes of four bits to eight.

    Attributes:
      missing: the operations that cannot be written, and where they are.
    """

    def __init__(
        self,
        traced: Traced,
        rules: Mapping[str, Any],
        fused: Mapping[CallPath, Fusion] | None = None,
        *,
        rounds_activations: bool = False,
    ):
        super().__init__(traced)
        self.rounds_activations = rounds_activations
        self.rules, self.fused = rules, dict(fused or {})
        self.file = File()
        self.missing: dict[str, list[str]] = {}
        self._reads = {key for fusion in self.fused.values() for key in fusion.reads}
        self._read: dict[Key, Any] = {}

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        self._note(path, [*jaxpr.constvars, *jaxpr.invars], [*consts, *values])
        return super().evaluate(jaxpr, consts, values, path, scope)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any]:
        fusion = self.fused.get(eqn.path)
        try:
            with jax.ensure_compile_time_eval():
                outs = self._written(eqn, values) if fusion is None else [self._as_one(eqn, fusion)]
        except Unsupported as error:
            outs = self._without(eqn, str(error))
        self._note(eqn.jaxpr_path, eqn.outvars, outs)
        return outs

    def _note(self, path: CallPath, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Keep values that one operation in place of several will read."""
        for var, value in zip(variables, values) if self._reads else ():
            if (path, var) in self._reads:
                self._read[path, var] = value

    def _as_one(self, eqn: Equation, fusion: Fusion) -> Any:
        x, *vectors = (self._read[key] for key in fusion.reads)
        names = [self.name_of(x), *(self.file.const(np.reshape(self.dense(one), -1)) for one in vectors)]
        return self.result(eqn, self.file.op(fusion.kind, *names, **fusion.attributes))

    def _written(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any]:
        unknown = any(isinstance(value, Tensor) for value in values)
        known_shapes = all(is_int(dim) for aval in eqn.out_avals for dim in aval.shape)
        if eqn.primitive in INLINED and eqn.bodies:
            rule = self.rules.get(f"call {eqn.params.get('name')}")
            outs = rule(self, eqn, values) if rule is not None and unknown else None
            return self.inner(eqn, eqn.bodies[0], values) if outs is None else outs
        rule = self.rules.get(eqn.primitive)
        if not unknown and known_shapes and eqn.primitive not in ("broadcast_in_dim", "dim_as_value"):
            if any(isinstance(value, Native) for value in values):
                outs = self.natively(eqn, values)
                if outs is not None:
                    return outs
            return self.computed(eqn, values)
        if not unknown and eqn.primitive in ELEMENTWISE_NAMES and len(eqn.out_avals) == 1:
            return [Spread(self.computed(eqn, [_held(value) for value in values])[0], tuple(eqn.out_avals[0].shape))]
        if rule is not None and (outs := rule(self, eqn, values)) is not None:
            return list(outs)
        if any(isinstance(value, Native) for value in values):
            outs = self.natively(eqn, values)
            return self._written(eqn, [self.plain(value) for value in values]) if outs is None else outs
        raise Unsupported("" if rule is None else "in this form")

    def _without(self, eqn: Equation, reason: str) -> list[Any]:
        """Note what is missing, and go on to find the rest."""
        what = f"{eqn.primitive}{f' ({reason})' if reason else ''}"
        self.missing.setdefault(what, []).append(self.name(eqn).removesuffix(eqn.primitive).rstrip("/_0123456789") or "the top")
        return [
            Tensor(self.file.fresh(), tuple(aval.shape), np.dtype(getattr(aval, "dtype", np.float32)))
            if not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
            else Tensor(self.file.fresh(), tuple(aval.shape), np.dtype(np.uint32))
            for aval in eqn.out_avals
        ]

    def computed(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        """The results of an operation on constants."""
        given = [self.dense(value) for value in values]
        try:
            outs = _compat.bind(eqn.raw, [jnp.asarray(one) if isinstance(one, np.ndarray) else one for one in given])
        except Exception as error:  # whatever an operation raises
            raise Unsupported(one_line(error, 100)) from error
        return [one if jnp.issubdtype(one.dtype, jax.dtypes.extended) else np.asarray(one) for one in outs]

    def natively(self, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
        """The results of an operation on packed leaves; None if they have no way to do it."""
        from lepton_jax.deploy.to_onnx import packed  # which writes by this class

        return packed.run(self, eqn, values)

    def dense(self, value: Any) -> Any:
        if isinstance(value, Native):
            return np.asarray(value.dense())
        return value.whole() if isinstance(value, Spread) and all(map(is_int, value.shape)) else value

    def shown(self) -> list[tuple[str, Dims]]:
        """Names and shapes of further outputs, to look at."""
        return []

    # What rules need.

    def whole(self, value: Any) -> Any:
        """A value with its axes in order and every element there."""
        value = self.plain(value)
        if isinstance(value, Tensor) and not value.is_full:
            name = self.file.op("Expand", value.name, self.file.shape(value.shape))
            return Tensor(name, value.shape, value.dtype)
        if isinstance(value, Spread):
            if all(map(is_int, value.shape)):
                return value.whole()
            name = self.file.op("Expand", self.file.const(value.array), self.file.shape(value.shape))
            return Tensor(name, value.shape, value.dtype)
        return value

    def plain(self, value: Any) -> Any:
        """A value with its axes in order."""
        if isinstance(value, Native):
            return self.opened(value)
        if not isinstance(value, Tensor) or value.is_plain:
            return value
        return Tensor(self.physical(value, tuple(range(value.ndim))), value.shape, value.dtype, held=value.held)

    def opened(self, value: Native) -> Any:
        """The dense array of a packed leaf, which the file makes of its codes."""
        from lepton_jax.deploy.to_onnx import packed

        return packed.opened(self, value)

    def name_of(self, value: Any) -> str:
        """The name of a value with its axes in order and every element there."""
        value = self.whole(value)
        return value.name if isinstance(value, Tensor) else self.file.const(np.asarray(value))

    def physical(self, value: Tensor, order: tuple[int, ...]) -> str:
        """The name of a value of which the file has axis `i` as ``order[i]``; lengths are those held."""
        if value.order == order:
            return value.name
        back = inverse(order)
        perm = [value.order[axis] for axis in back]
        return self.file.once(("transpose", value.name, *perm), lambda: self.file.op("Transpose", value.name, perm=perm))

    def result(self, eqn: Equation, name: str, index: int = 0, **how: Any) -> Tensor:
        """A result of an operation, by its name in the file."""
        aval = eqn.out_avals[index]
        return Tensor(name, tuple(aval.shape), np.dtype(aval.dtype), **how)

    def elementwise(self, kind: str, values: Sequence[Any], dtype: Any, *, compute: bool = True, **attributes: Any) -> Tensor:
        """Write an operation element by element; transposes and broadcasts that are put off stay so.

        Args:
          kind: ONNX's operation.
          values: of one shape, or scalars.
          dtype: of the result.
          compute: whether it computes with the elements, for which engines want types that they know.
          **attributes: of the node.
        """
        dtype = np.dtype(dtype)
        values = [self.plain(value) if isinstance(value, Native) else value for value in values]
        ndim = max(np.ndim(value) if not isinstance(value, Tensor | Spread) else len(value.shape) for value in values)
        tensors = [value for value in values if isinstance(value, Tensor) and value.ndim == ndim]
        full = [value for value in tensors if value.is_full] or tensors
        orders = [value.order for value in full]
        order = max(orders, key=orders.count) if orders else tuple(range(ndim))
        names, held, shape = [], [1] * ndim, [1] * ndim
        for value in values:
            own = WORK.get(value.dtype.name, value.dtype) if compute else value.dtype
            name, lengths, logical = self._operand(value, order, ndim)
            names.append(name if own == value.dtype else self.file.cast(name, own))
            held = [one if not (is_int(one) and one == 1) else other for one, other in zip(held, lengths)]
            shape = [one if not (is_int(one) and one == 1) else other for one, other in zip(shape, logical)]
        work = WORK.get(dtype.name, dtype) if compute else dtype
        name = self.file.op(kind, *names, **attributes)
        return Tensor(name if work == dtype else self.file.cast(name, dtype), tuple(shape), dtype, order, tuple(held))

    def _operand(self, value: Any, order: tuple[int, ...], ndim: int) -> tuple[str, Dims, Dims]:
        if isinstance(value, Tensor):
            if value.ndim == ndim:
                return self.physical(value, order), value.held, value.shape
            return value.name, (1,) * ndim, (1,) * ndim
        array = value.array if isinstance(value, Spread) else np.asarray(value)
        if array.ndim != ndim:
            return self.file.const(array), (1,) * ndim, (1,) * ndim
        return self.file.const(array.transpose(inverse(order))), array.shape, value.shape

    def bias(self, vector: np.ndarray, node: Any) -> str:
        """The name of a bias that is added to what a node computes."""
        return self.file.const(vector)

    def is_weight(self, name: str) -> bool:
        """Whether a name is that of a constant."""
        return name in self.file.constants

    def cast(self, value: Any, dtype: Any) -> Any:
        """A value in another type."""
        if np.dtype(dtype) == value.dtype:
            return value
        if isinstance(value, Tensor):
            return replace(value, name=self.file.cast(value.name, dtype), dtype=np.dtype(dtype))
        if isinstance(value, Spread):
            return Spread(value.array.astype(dtype), value.shape)
        return np.asarray(value).astype(dtype)

    def worked(self, value: Any) -> Any:
        """A value in a type with which engines compute."""
        return self.cast(value, WORK.get(value.dtype.name, value.dtype))


def _held(value: Any) -> Any:
    return value.array if isinstance(value, Spread) else value


def is_zero(value: Any) -> bool:
    """Whether a value is a constant of zeros.

    Example:
      >>> is_zero(np.zeros(2)), is_zero(np.ones(2))
      (True, False)
    """
    array = value.array if isinstance(value, Spread) else value
    return isinstance(array, np.ndarray | np.generic) and array.dtype != ml_dtypes.bfloat16 and not np.any(array)


def array_of(value: Any) -> np.ndarray | None:
    """The elements that a constant holds, those repeated once; None for what the file computes."""
    if isinstance(value, Spread):
        return value.array
    return None if isinstance(value, Tensor | Native) else np.asarray(value)


def is_whole(value: Tensor, shape: Dims) -> bool:
    """Whether a value has this shape."""
    return len(value.shape) == len(shape) and all(same(a, b) for a, b in zip(value.shape, shape))
