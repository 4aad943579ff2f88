"""Files in eight bits: every rounded value as codes and back, which engines take together with the operations around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.deploy.sites import Graph, Grid, Site, is_absorbed, is_rectifier, variables_of
from lepton_jax.deploy.to_onnx.exporter import Exporter, array_of
from lepton_jax.deploy.to_onnx.tensors import Tensor, inverse, is_int
from lepton_jax.deploy.weights import Weight, bias_codes, in_codes
from lepton_jax.graph.trace import Equation, Traced


class Coded(NamedTuple):
    """Codes in the file, and how they are read.

    Attributes:
      codes: their name.
      scale: float32; one for each output of a weight.
      zero_point: of all.
    """

    codes: str
    scale: np.ndarray
    zero_point: int


class RoundedExporter(Exporter):
    """Writes a graph with rounded values.

    Args:
      traced: the graph, in one piece.
      rules: see `Exporter`.
      fused: likewise.
      sites: which values are rounded.
      grids: how.
      largest: of weights' codes.
      show: whether codes are outputs of the file.
    """

    def __init__(
        self,
        traced: Traced,
        rules: Mapping[str, Any],
        fused: Any = None,
        *,
        sites: Mapping[str, Site],
        grids: Mapping[str, Grid],
        largest: int,
        show: bool = False,
    ):
        super().__init__(traced, rules, fused)
        self.graph = Graph(traced)
        self.at = variables_of(self.graph, sites)
        self.grids, self.largest, self.show = grids, largest, show
        self.sites = {}
        self.order = list(sites)
        self.coded: dict[str, Coded] = {}
        """How values were made of codes, by their names."""
        self.placed: dict[str, Tensor] = {}
        """Rounded values by the names of their sites."""

    def round(self, var: Any, value: Any) -> Any:
        """A value as codes and back, if it is at a site."""
        site = self.at.get(var)
        if site is None or not isinstance(value, Tensor):
            return value
        grid = self.grids[site.of]
        if value.name in self.coded:  # moved as codes
            self.placed[site.name] = value
            return value
        scale, zero = self.file.const(np.float32(grid.scale)), self.file.const(np.uint8(grid.zero_point))

        def write() -> str:
            codes = self.file.op("QuantizeLinear", value.name, scale, zero)
            name = self.file.op("DequantizeLinear", codes, scale, zero)
            self.coded[name] = Coded(codes, np.asarray(grid.scale), grid.zero_point)
            return name

        name = self.file.once(("rounded", value.name, site.of), write)
        self.placed[site.name] = replace(value, name=name)
        return self.placed[site.name]

    def shown(self) -> list[tuple[str, Any]]:
        found = [self.placed[name] for name in self.order] if self.show else []
        codes = [replace(value, name=self.coded[value.name].codes, dtype=np.dtype(np.uint8)) for value in found]
        return [(self.name_of(value), value.shape) for value in codes]

    def evaluate(self, jaxpr: Any, consts: Any, values: Sequence[Any], path: Any = (), scope: str = "") -> list[Any]:
        if path == ():
            values = [self.round(var, value) for var, value in zip(jaxpr.invars, values)]
        return super().evaluate(jaxpr, consts, values, path, scope)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any]:
        values = list(values)
        if len(eqn.path) == 1 and self.graph.is_weighted(eqn):
            weight = array_of(self.dense(values[1]))
            if isinstance(values[0], Tensor) and values[0].name in self.coded and weight is not None:
                values[1] = in_codes(eqn, np.broadcast_to(weight, eqn.in_avals[1].shape), self.largest)
        outs = super().handle(eqn, values)
        return [self.round(var, out) for var, out in zip(eqn.outvars, outs)] if len(eqn.path) == 1 else outs

    def _written(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any]:
        if len(values) == 2 and isinstance(values[1], Weight):
            if eqn.primitive == "dot_general":
                return [self._dot(eqn, values[0], values[1])]
        elif is_rectifier(eqn) and (site := self.graph.site_after(eqn, self.at)) is not None:
            [value, *more] = [value for value in values if isinstance(value, Tensor)]
            if not more and is_absorbed(eqn, self.grids[site.of]):
                return [value]  # nothing between a convolution and its rounding: engines do both at once
        elif eqn.primitive == "pad" and eqn.outvars[0] in self.at and (found := self._coded(values[0])) is not None:
            return [self._padded(eqn, values[0], found)]
        elif eqn.primitive in ("reduce_sum", "reduce_window_sum") and (found := self._coded(values[0])) is not None:
            return self._summed(eqn, values[0], found)
        return super()._written(eqn, values)

    def _coded(self, value: Any) -> Coded | None:
        return self.coded.get(value.name) if isinstance(value, Tensor) and value.is_full else None

    def weight(self, weight: Weight, axes: Sequence[int], shape: Sequence[int], channel: int) -> str:
        """The name of a weight made of its codes, its axes in an order and in a shape, with a scale along one of them."""
        codes = weight.codes.transpose(axes).reshape(shape)
        full = np.broadcast_to(weight.scale, [n if s != 1 else 1 for n, s in zip(weight.shape, weight.scale.shape)])
        scale = np.ascontiguousarray(full.transpose(axes).reshape(-1), np.float32)
        scale = np.broadcast_to(scale, (shape[channel],)) if scale.size == 1 else scale
        given = [self.file.const(codes), self.file.const(scale), self.file.const(np.zeros(scale.shape, np.int8))]
        key = ("weight", *given)
        name = self.file.once(key, lambda: self.file.op("DequantizeLinear", *given, axis=channel))
        self.coded[name] = Coded(given[0], scale, 0)
        return name

    def _dot(self, eqn: Equation, x: Tensor, weight: Weight) -> Tensor:
        """A product as a matrix of codes takes it: rows by the matrix of all outputs."""
        (left, right), _ = eqn.params["dimension_numbers"]
        rows = [axis for axis in range(x.ndim) if axis not in left]
        columns = [axis for axis in range(len(weight.shape)) if axis not in right]
        inner = math.prod(weight.shape[axis] for axis in right)
        outer = math.prod(weight.shape[axis] for axis in columns)
        matrix = self.weight(weight, [*right, *columns], (inner, outer), 1)
        name = self.physical(x, inverse((*rows, *left)))
        if len(left) != 1 or not rows:
            name = self.file.reshape(name, (*([x.shape[a] for a in rows] or [1]), inner))
            self.coded.setdefault(name, self.coded[x.name])
        name = self.file.op("MatMul", name, matrix)
        if len(columns) != 1 or not rows:
            name = self.file.reshape(name, (*(x.shape[a] for a in rows), *(weight.shape[a] for a in columns)))
        return self.result(eqn, name)

    def bias(self, vector: np.ndarray, node: Any) -> str:
        x, weight = (self.coded.get(name) for name in node.input[:2])
        if x is None or weight is None:
            return super().bias(vector, node)
        scale = (np.float32(x.scale) * weight.scale).astype(np.float32)
        codes = bias_codes(np.broadcast_to(vector, scale.shape), scale)
        return self.file.op("DequantizeLinear", self.file.const(codes), self.file.const(scale), axis=0)  # around zero

    def is_weight(self, name: str) -> bool:
        return super().is_weight(name) or name in self.coded

    def _padded(self, eqn: Equation, value: Tensor, found: Coded) -> Tensor:
        """Codes with the code of zero around them."""
        codes = replace(value, name=found.codes, dtype=np.dtype(np.uint8))
        [out] = self.rules["pad"](self, eqn, [codes, np.uint8(found.zero_point)])
        scale, zero = self.file.const(np.float32(found.scale)), self.file.const(np.uint8(found.zero_point))
        name = self.file.op("DequantizeLinear", out.name, scale, zero)
        self.coded[name] = found._replace(codes=out.name)
        return replace(out, name=name, dtype=np.dtype(np.float32))

    def _summed(self, eqn: Equation, value: Tensor, found: Coded) -> list[Any]:
        """A sum of codes, exact in whole numbers whatever the order, scaled after it."""
        numbers = replace(value, name=self.file.cast(found.codes, np.float32))
        [out] = self.rules[eqn.primitive](self, eqn, [numbers])
        if eqn.primitive == "reduce_window_sum":
            if any(low or high for low, high in eqn.params["padding"]):
                return list(super()._written(eqn, [value]))
            out = replace(out, name=self.file.op("Round", out.name))
            count: Any = math.prod(eqn.params["window_dimensions"])
        else:
            lengths = [value.shape[axis] for axis in eqn.params["axes"]]
            if not all(map(is_int, lengths)):
                return list(super()._written(eqn, [value]))
            count = math.prod(lengths)
        offset = np.float32(count * found.zero_point)
        out = self.elementwise("Sub", [out, offset], np.float32)
        return [self.elementwise("Mul", [out, np.float32(found.scale)], np.float32)]
