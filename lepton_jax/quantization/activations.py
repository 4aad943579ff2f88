"""Quantized operands of dots, convolutions and gathers, by rewriting the graph: in simulation, and with integers."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.formats import Float8, Uniform
from lepton_jax.graph import _compat
from lepton_jax.graph.cost import dense_shapes
from lepton_jax.graph.primitives import PRODUCTS
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace
from lepton_jax.leaves.dots import alike, free_expanded, outer
from lepton_jax.leaves.form import Native
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.native.interpreter import OnPacked, PackedInterpreter, UnpackedWarning
from lepton_jax.native.operations import run
from lepton_jax.quantization.decide import decide
from lepton_jax.quantization.rules import Operand, Rule, rules_of
from lepton_jax.quantization.sites import check_sites, part, values_of

_INT8 = Uniform(8)


@checked_but("rules")
def quantize_activations(
    apply: Apply,
    rules: Rule | Sequence[Rule] | str,
    *,
    native: bool = False,
    derivative: Literal["rounded", "unrounded"] = "rounded",
) -> Apply:
    """Return `apply` with operands of its dots, convolutions and gathers rounded, as the rules say.

    Nothing is patched: the function's graph is evaluated with those operations done otherwise. It is rounded where an operand
    meets its operation, after whatever was done to it on the way (a weight transposed, cast or scaled).

    In simulation two rounded operands are multiplied as whole numbers in float32, and the scales are applied to the result: as
    long as sums of products stay below ``2**24`` these are the very numbers that integers give. The derivative is that of the
    operation on the rounded operands, and goes straight through the rounding as each quantizer has it.

    Weights that are packed (`QArray`) have their format already; rules for weights pass them over. They may be given as they
    are; ``packed`` of the result runs natively, and so does the native program of an artifact. Weights may also be rounded by a
    transform's view (`fake_quant`), and the other operands here.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      rules: in the order in which they are asked; see `Rule`. Or a short name: "w8a8" rounds weights and activations to eight
        bits, with ranges found as the model runs.
      native: run in integers what can be: codes of eight bits against codes, accumulated in int32 (eight-bit floats in
        float32). A rounded operand that meets an operand that is not is multiplied as in simulation.
      derivative: of a native product of operands that are rounded straight through: that of the product of the rounded
        operands, as in simulation, or of the operands before they are rounded, which is a little faster.

    Returns:
      function of the same arguments; it works under jit, grad, vmap and scan. Call it under jit. If a rule's quantizer keeps
      something (`Static`, learned ones), the variables need the collection "quantization" of `calibrate_activations` beside
      their own; see `with_sites`.

    Raises:
      TypeError: for what is no rule.
      ValueError: when called, for a rule that decides about nothing, a format that an operand has not the axes for, and sites
        that lack, are zero or not finite; with the operation.

    Example:
      >>> from lepton_jax.quantization import Dynamic, Uniform
      >>> rounded = quantize_activations(lambda v, x: x @ v["kernel"], Rule(quantizer=Dynamic(Uniform(2))))
      >>> jax.jit(rounded)({"kernel": jnp.eye(2)}, jnp.array([[0.4, 1.5]])).tolist()
      [[0.0, 1.0]]

    Source: Jacob et al. 2018, "Quantization and training of neural networks", sections 2 and 3.
    """
    checked = rules_of(rules)
    if derivative not in ("rounded", "unrounded"):
        raise ValueError(f'quantize_activations: derivative must be "rounded" or "unrounded"; got {derivative!r}.')

    @wraps(apply)
    def quantized_apply(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        own, sites = part(variables)
        traced = trace(apply, dense_shapes(own), *dense_shapes(tuple(inputs)), **static)
        decided = decide(traced, checked)
        check_sites(sites, decided)
        interpreter = Quantizing(traced, decided, sites, native, derivative)
        outs = interpreter.run(values_of(own, inputs, static))
        if interpreter.unpacked:
            warnings.warn(
                f"{len(interpreter.unpacked)} packed leaves were unpacked where they were used: "
                f"{'; '.join(map(str, interpreter.unpacked))}. There they are no faster than dense ones.",
                UnpackedWarning,
                stacklevel=2,
            )
        return jax.tree.unflatten(traced.out_tree, outs)

    run = quantized_apply if native else quantize_activations(apply, checked, native=True, derivative=derivative)
    quantized_apply.__dict__["on_packed"] = OnPacked(of=quantized_apply, run=run)
    return quantized_apply


class Quantizing(PackedInterpreter):
    """Runs a graph with rounded operands.

    Args:
      traced: the graph.
      decided: what is done to its operands.
      sites: what quantizers keep, by operation and argument.
      native: whether integers are multiplied as such.
      derivative: see `quantize_activations`.
    """

    def __init__(
        self,
        traced: Traced,
        decided: Mapping[CallPath, Sequence[Operand]],
        sites: Mapping[str, PyTree],
        native: bool,
        derivative: str = "rounded",
    ):
        super().__init__(traced)
        self.sites = dict(sites)
        self.decided, self.native, self.derivative = decided, native, derivative
        self.casts = casts_of_integers(traced, decided)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.path in self.casts and not isinstance(values[0], Native):
            return [integers(values[0], eqn.params["new_dtype"])]
        operands = self.decided.get(eqn.path, ())
        if not any(operand.quantizer is not None for operand in operands):
            return super().handle(eqn, values)
        site = self.site(eqn) or {}
        if eqn.primitive != "gather":  # of which rows are looked up before they are unpacked
            values = [value.opened() if isinstance(value, Native) else value for value in values]
        pairs = list(zip(operands, values))
        if eqn.primitive in PRODUCTS and all(_has_codes(*pair) for pair in pairs):
            return [self._multiplied(eqn, *(self._coded(*pair, site) for pair in pairs))]
        # Alone, a rounded operand is an array like others; a packed one runs as `packed` has it.
        values = [*(self._rounded(*pair, site) for pair in pairs), *values[len(pairs) :]]
        outs = super().handle(eqn, values)
        return self.bind(eqn, values) if outs is None else outs

    def _rounded(self, operand: Operand, value: Any, site: Mapping[str, Any]) -> Any:
        if isinstance(value, Native) or operand.quantizer is None:
            return value
        return operand.quantizer(value, site.get(operand.argument, {}))

    def _coded(self, operand: Operand, value: Any, site: Mapping[str, Any]) -> Quantized:
        """An operand as codes, and what has its derivative: if that goes straight through, the operand itself."""
        quantizer = operand.quantizer
        if isinstance(value, Quantized) or quantizer is None:
            return value
        kept = site.get(operand.argument, {})
        slope = getattr(quantizer, "slope", quantizer) if self.native else quantizer
        return replace(_codes(quantizer.quantized(value, kept)), seen=slope(value, kept))

    def _multiplied(self, eqn: Equation, lhs: Quantized, rhs: Quantized) -> Any:
        if self.native and self.derivative == "unrounded":
            seen = [side.dense() if isinstance(side.seen, tuple) else side.seen for side in (lhs, rhs)]
            outs = run(eqn, [replace(side, seen=()) for side in (lhs, rhs)])
            if outs is not None:
                return straight_through(*self.bind(eqn, seen), outs[0])
        if self.native:
            outs = run(eqn, [lhs, rhs])
            if outs is not None:
                return outs[0]
        [plain] = self.bind(eqn, [lhs.dense(), rhs.dense()])
        out = exact(eqn, lhs, rhs)
        return plain if out is None else straight_through(plain, out.astype(plain.dtype))


def _has_codes(operand: Operand, value: Any) -> bool:
    """Whether an operand is packed in codes, or is to be rounded to codes that can be multiplied."""
    if isinstance(value, Native) or operand.quantizer is None or operand.is_gather:
        return isinstance(value, Quantized)
    fmt = operand.quantizer.format
    return fmt.is_integer or isinstance(fmt, Float8)


def _codes(codes: QArray | Quantized) -> Quantized:
    if isinstance(codes, Quantized):
        return codes
    fmt = codes.format
    zero_point = () if fmt.symmetric else codes.zero_point.astype(jnp.int32)
    return Quantized(codes.qvalue, codes.scale, zero_point, fmt, codes.output_dtype)


def exact(eqn: Equation, lhs: Quantized, rhs: Quantized) -> Array | None:
    """Return what a dot or convolution of codes gives, their sums taken in float32; None if scales stand in the way.

    ``(sum_k (a - p)(b - q)) s_a s_b``: sums of whole numbers, exact below ``2**24``, then scaled as integers' results are. So
    it equals native execution bit for bit; the operation on ``(a - p) s_a`` and ``(b - q) s_b`` rounds every product.

    Args:
      eqn: the operation.
      lhs: codes of eight bits at most.
      rhs: likewise.
    """
    if not alike(lhs, rhs):
        return None
    if eqn.primitive == "dot_general":
        numbers = eqn.params["dimension_numbers"]
        lhs, rhs = (free_expanded(side, summed) for side, summed in zip((lhs, rhs), numbers[0]))
        if any(side.scale.shape[axis] != 1 for side, summed in zip((lhs, rhs), numbers[0]) for axis in summed):
            return None
        scales = outer(lhs.scale.astype(jnp.float32), rhs.scale.astype(jnp.float32), numbers)
    else:
        numbers = eqn.params["dimension_numbers"]
        places = (numbers.lhs_spec[0], numbers.rhs_spec[0])
        if any(n != 1 for side, own in zip((lhs, rhs), places) for axis, n in enumerate(side.scale.shape) if axis != own):
            return None
        scales = _along(lhs.scale, places[0], numbers.out_spec[0]) * _along(rhs.scale, places[1], numbers.out_spec[1])
    wide: dict[str, Any] = {"preferred_element_type": np.dtype(np.float32)}
    [out] = _compat.bind(eqn.raw, [jax.lax.stop_gradient(side.integers(jnp.float32)) for side in (lhs, rhs)], **wide)
    return out * scales


def _along(scale: Array, axis: int, place: int) -> Array:
    shape = [1] * scale.ndim
    shape[place] = scale.shape[axis]
    return scale.reshape(shape).astype(jnp.float32)


def casts_of_integers(traced: Traced, decided: Mapping[CallPath, Sequence[Operand]]) -> set[CallPath]:
    """Return the casts of int8 weights to floats for dots and convolutions whose other operand is rounded.

    They are what `packed` makes of a packed leaf that meets a float; the integers themselves can be multiplied.

    Args:
      traced: the graph.
      decided: what is done to its operands.
    """
    casts = {
        (eqn.jaxpr_path, eqn.outvars[0]): eqn.path
        for eqn in traced.equations()
        if eqn.primitive == "convert_element_type" and eqn.in_avals[0].dtype == jnp.int8
    }
    found = set()
    for eqn in traced.equations():
        operands = decided.get(eqn.path, ())
        if eqn.primitive in PRODUCTS and any(operand.quantizer is not None for operand in operands):
            for operand, var in zip(operands, eqn.invars):
                if operand.kind == "weight" and not _compat.is_literal(var):
                    found.add(casts.get((eqn.jaxpr_path, var)))
    return {path for path in found if path is not None}


def integers(value: Array, dtype: Any) -> Quantized:
    """Return int8 numbers as codes of scale one."""
    scale = jnp.ones((1,) * value.ndim, jnp.float32)
    return Quantized(value, scale, (), _INT8, jnp.dtype(dtype).name)
