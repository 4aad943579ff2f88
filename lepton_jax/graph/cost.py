"""What a model costs: multiplications, bytes of parameters, bytes of activations; by operation and by parameter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import is_packed
from lepton_jax.core.paths import flatten
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.primitives import MOVING, PASSING, RAGGED, SENDING, names
from lepton_jax.graph.trace import Apply, Equation, Traced, trace

_FREE = MOVING | PASSING | SENDING | names("concatenate pad split select_n bitcast_convert_type iota scatter axis_index")
_REDUCING = ("reduce_", "arg", "cum")


@dataclass(frozen=True, kw_only=True)
class OperationCost:
    """One operation of the graph, all its runs in a scan together.

    Example:
      >>> found = cost(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)))
      >>> found.operations[0].macs, found.operations[0].shape, found.operations[0].parameters
      (30, (5, 2), ('kernel',))
    """

    name: str
    primitive: str
    scope: str
    macs: int
    """Multiply-accumulates of a dense dot or convolution: elements of the result times elements summed for each."""
    nonzero_macs: float
    """Those left when weights that are zero are passed over and packed factors are multiplied one after the other."""
    flops: int
    """As XLA counts: two for every multiply-accumulate that meets no padding, one for every element of other arithmetic."""
    parameters: tuple[Path, ...]
    parameter_bytes: int
    activation_bytes: int
    """Bytes that it writes, if they depend on the input."""
    shape: tuple[int, ...]
    times: int


@dataclass(frozen=True, kw_only=True)
class ParameterCost:
    """One leaf of the variables, as it is stored.

    Example:
      >>> found = cost(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)))
      >>> found.parameters["kernel"].bytes, found.parameters["kernel"].nonzeros
      (24, 6)
    """

    path: Path
    shape: tuple[int, ...]
    size: int
    """Elements of the dense leaf."""
    nonzeros: int | None
    """Elements stored that are not zero, in all factors; None if only shapes are known."""
    bytes: int
    macs: int
    nonzero_macs: float

    @property
    def bits(self) -> float:
        """Bits stored for each element of the dense leaf."""
        return 8 * self.bytes / self.size if self.size else 0.0

    @property
    def sparsity(self) -> float | None:
        """Fraction of the dense leaf's elements that are not stored or zero."""
        return None if self.nonzeros is None or not self.size else 1 - self.nonzeros / self.size


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of one call of a model.

    Example:
      >>> found = cost(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)))
      >>> found.macs, [operation.name for operation in found.operations], list(found.parameters)
      (30, ['dot_general'], ['kernel'])
    """

    operations: tuple[OperationCost, ...]
    parameters: Mapping[Path, ParameterCost]
    unknown: tuple[str, ...]
    """Primitives whose inside could not be looked into; their multiplications are not counted."""
    loops: tuple[str, ...]
    """While loops; what is in them is counted for one step."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all dots and convolutions."""
        return sum(op.macs for op in self.operations)

    @property
    def nonzero_macs(self) -> float:
        """Multiply-accumulates with weights that are not zero."""
        return sum(op.nonzero_macs for op in self.operations)

    @property
    def flops(self) -> int:
        """Floating point operations, as XLA counts them before optimisation."""
        return sum(op.flops for op in self.operations)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all variables as stored."""
        return sum(parameter.bytes for parameter in self.parameters.values())

    @property
    def activation_bytes(self) -> int:
        """Bytes written by all operations, before any fusion."""
        return sum(op.activation_bytes for op in self.operations)


@checked
def cost(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> Cost:
    """Count what one call of a model costs.

    A dot of result size M and K summed elements costs ``M K`` multiply-accumulates, a convolution its result's size times
    the elements of its kernel in one group; inside a scan, times its length. Nothing is computed but zeros in the
    variables.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      variables: arrays, packed leaves, or `jax.ShapeDtypeStruct` leaves.
      *inputs: arrays, or their shapes.
      **static: keywords of `apply`.

    Returns:
      the costs, by operation and by parameter. An operation counts for every parameter that its weights were computed from.

    Example:
      >>> variables = {"kernel": jnp.array([[1.0, 0.0], [2.0, 3.0], [0.0, 1.0]])}
      >>> found = cost(lambda v, x: x @ v["kernel"], variables, jnp.ones((5, 3)))
      >>> found.macs, found.nonzero_macs, found.parameter_bytes, found.activation_bytes
      (30, 20.0, 24, 40)
    """
    stored = {path: _stored(path, leaf) for path, leaf in flatten(variables, is_packed).items()}
    traced = trace(apply, dense_shapes(variables), *inputs, **static)
    found = origins(traced)
    operations, unknown, loops = [], set(), []
    for eqn in traced.equations():
        if eqn.primitive == "while":
            loops.append(traced.names[eqn.path])
        if _compat.is_opaque(eqn.raw):
            unknown.add(eqn.primitive)
        if not eqn.bodies and not _in_second_branch(eqn):
            operations.append(_operation(traced, eqn, operand_origins(found, eqn), stored))
    macs = {path: [(op.macs, op.nonzero_macs) for op in operations if path in op.parameters] for path in stored}
    parameters = {
        path: replace(leaf, macs=sum(m for m, _ in macs[path]), nonzero_macs=sum(n for _, n in macs[path]))
        for path, leaf in stored.items()
    }
    return Cost(operations=tuple(operations), parameters=parameters, unknown=tuple(sorted(unknown)), loops=tuple(loops))


def dense_shapes(tree: PyTree) -> PyTree:
    """Return the tree with every packed leaf as the shape and dtype of its dense array."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_packed(leaf) else leaf, tree, is_leaf=is_packed
    )


def macs(eqn: Equation) -> int:
    """Multiply-accumulates of one run of an operation: 0 unless it is a dot or a convolution."""
    result = math.prod(eqn.out_avals[0].shape) if eqn.outvars else 0
    if eqn.primitive == "dot_general":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        return result * math.prod(eqn.in_avals[0].shape[axis] for axis in contracting)
    if eqn.primitive == "conv_general_dilated":
        kernel = eqn.in_avals[1].shape
        return result * math.prod(kernel) // max(kernel[eqn.params["dimension_numbers"].rhs_spec[0]], 1)
    if eqn.primitive in RAGGED:
        return math.prod(eqn.in_avals[0].shape) * eqn.in_avals[1].shape[-1]
    return 0


def _operation(
    traced: Traced, eqn: Equation, given: Sequence[frozenset[Path] | None], stored: Mapping[Path, ParameterCost]
) -> OperationCost:
    times = 1 if eqn.times is None else eqn.times
    of_inputs = any(origin is None for origin in given)
    used = sorted({path for origin in given if origin for path in origin})
    count = macs(eqn)
    kept = 1.0
    for path in used:
        nonzeros, size = stored[path].nonzeros, stored[path].size
        # Several leaves in one weight (a direction and a norm): the largest is the one multiplied.
        if nonzeros is not None and size == max(stored[p].size for p in used):
            kept = nonzeros / size if size else 0.0
    written = sum(nbytes(aval) for aval in eqn.out_avals)
    return OperationCost(
        name=traced.names[eqn.path],
        primitive=eqn.primitive,
        scope=eqn.scope,
        macs=times * count,
        nonzero_macs=times * count * kept,
        flops=times * _flops(eqn, count),
        parameters=tuple(used),
        parameter_bytes=sum(stored[path].bytes for path in used),
        activation_bytes=times * written if of_inputs else 0,
        shape=tuple(eqn.out_avals[0].shape) if eqn.outvars else (),
        times=times,
    )


def _in_second_branch(eqn: Equation) -> bool:
    """Of the branches of a cond, one runs: the first is counted."""
    return any(isinstance(step, str) and step.startswith("branch") and step != "branch0" for step in eqn.path)


def _stored(path: Path, leaf: Any) -> ParameterCost:
    parts = jax.tree.leaves(leaf)
    known = all(isinstance(part, jax.Array | np.ndarray) and not isinstance(part, jax.core.Tracer) for part in parts)
    return ParameterCost(
        path=path,
        shape=tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape),
        size=math.prod(leaf.shape) if hasattr(leaf, "shape") else 1,
        nonzeros=_nonzeros(leaf) if known and parts else None,
        bytes=sum(nbytes(part) for part in parts),
        macs=0,
        nonzero_macs=0,
    )


def _nonzeros(leaf: Any) -> int:
    if is_packed(leaf):
        return leaf.nonzeros()
    return leaf.size if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else int(jnp.count_nonzero(leaf))


def nbytes(value: Any) -> int:
    """Bytes of an array, or of a shape and dtype."""
    if not hasattr(value, "dtype"):
        return 4
    size, dtype = math.prod(value.shape), value.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 8 * size
    # Sub-byte integers are stored in bits.
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * np.dtype(dtype).itemsize
    return -(-size * bits // 8)


def _flops(eqn: Equation, count: int) -> int:
    if eqn.primitive == "conv_general_dilated":
        return 2 * _macs_without_padding(eqn)
    if count:
        return 2 * count
    if eqn.primitive == "fft":
        return _fft_flops(eqn)
    if eqn.primitive in _FREE or not eqn.outvars or not jnp.issubdtype(eqn.out_avals[0].dtype, jnp.floating):
        return 0
    if eqn.primitive.startswith("scatter"):
        return math.prod(eqn.in_avals[2].shape)
    read = eqn.primitive.startswith(_REDUCING)
    return math.prod((eqn.in_avals if read else eqn.out_avals)[0].shape)


def _fft_flops(eqn: Equation) -> int:
    real = min((*eqn.in_avals, *eqn.out_avals), key=lambda aval: jnp.issubdtype(aval.dtype, jnp.complexfloating))
    steps = sum(length.bit_length() - 1 for length in eqn.params["fft_lengths"])
    return 8 * steps * math.prod(real.shape)


def _macs_without_padding(eqn: Equation) -> int:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    lhs, rhs, out = (aval.shape for aval in (*eqn.in_avals[:2], eqn.out_avals[0]))
    pairs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    for axis, (low, _) in enumerate(params["padding"]):
        size, stretch = lhs[numbers.lhs_spec[2 + axis]], params["lhs_dilation"][axis]
        start = np.arange(out[numbers.out_spec[2 + axis]]) * params["window_strides"][axis] - low
        offset = np.arange(rhs[numbers.rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
        place = start[:, None] + offset[None, :]
        pairs *= int(np.sum((place >= 0) & (place <= (size - 1) * stretch) & (place % stretch == 0)))
    return pairs
