"""Running a model on its packed leaves."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import Packed, is_packed, register_packed
from lepton_jax.core.paths import path_str
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.cost import dense_shapes
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import Apply, Equation, Traced, split_keywords, trace
from lepton_jax.leaves.form import Native
from lepton_jax.native.operations import run


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A packed leaf that an operation needed as a dense array.

    Example:
      >>> str(Unpacked(path="kernel", kind="LowRank", operation="sin"))
      'kernel (LowRank) at sin'
    """

    path: Path
    kind: str
    operation: str

    def __str__(self) -> str:
        return f"{self.path} ({self.kind}) at {self.operation}"


class UnpackedWarning(UserWarning):
    """Some packed leaves were unpacked: those operations are neither smaller nor faster."""


@register_packed("leaf")
class _Opaque(Native):
    """A packed leaf without a form in which it runs."""

    leaf: Packed
    path: Path

    @property
    def kind(self) -> str:  # type: ignore[override]
        return type(self.leaf).__name__

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    def dense(self) -> Any:
        return self.leaf.unpack()

    def layers(self, length: int) -> None:
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class OnPacked:
    """How a rewritten function runs on packed leaves, by which `packed` then runs it; among its attributes, as `on_packed`.

    Args:
      of: the function. One that wraps it has its attributes, but is another.
      run: runs it.
    """

    of: Apply
    run: Apply


class PackedInterpreter(Interpreter):
    """Evaluates a graph on the native forms of packed leaves; `unpacked` is what it needed dense.

    Args:
      traced: the graph, of dense leaves.
    """

    def __init__(self, traced: Traced):
        super().__init__(traced)
        self.unpacked: dict[Unpacked, None] = {}
        self.place = "the outputs"
        self.whole: dict[Path, Native] = {}

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if not any(isinstance(value, Native) for value in values):
            return None
        outs = None if eqn.bodies else run(eqn, values)
        if outs is None:
            self.place = self.name(eqn)
        return outs

    def dense(self, value: Any) -> Any:
        if not isinstance(value, Native):
            return value
        self.unpacked[Unpacked(path=value.path, kind=value.kind, operation=self.place)] = None
        return value.dense()

    def scanned(self, value: Any, length: int) -> Any:
        if not isinstance(value, Native):
            return super().scanned(value, length)
        taken = value.layers(length)
        self.whole[value.path] = value  # what all layers share stays outside of the loop
        return self.dense(value) if taken is None else taken

    def sliced(self, value: Any) -> Any:
        return value.taken(self.whole[value.path]) if isinstance(value, Native) else value

    def run(self, values: Sequence[Any]) -> list[Any]:
        outs = self.evaluate(self.traced.jaxpr, self.traced.consts, values)
        self.place = "the outputs"
        return [self.dense(value) for value in outs]


@checked
def packed(apply: Apply) -> Apply:
    """Return a function that runs `apply` on packed leaves, without unpacking them where that can be.

    * `LowRank`: two thin dots; a convolution to r channels and a dot; rows of u, then a dot.
    * `Separable`, `Tucker`, `CP`, `TensorTrain`, `TensorTrainMatrix`: one dot, convolution or look-up for each of their parts.
    * `QArray`: the dot, convolution or gather of the integers, the scales applied to the result. Where both sides are
      integers (a packed input too), accumulated in int32; against a floating input the integers are cast, exactly.
    * `Adapted`: its weight and its correction, each in its way, and their sum.
    * `BlockSparse`: the blocks that are there, gathered and multiplied; convolutions through patches.

    They are carried through jit, remat, scan (layer by layer), cond, through transposes and casts. Whatever else meets a
    packed leaf gets it unpacked, and an `UnpackedWarning` says which leaf and where; `unpacked` lists the same.

    Values equal those of ``apply(unpack(variables), ...)`` within rounding: sums are taken in another order.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)`` of dense leaves.

    Returns:
      function of the same arguments, whose variables and inputs may have packed leaves. Call it under jit.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.leaves.low_rank import LowRank
      >>> leaf = LowRank(jnp.ones((3, 1)), jnp.full((1, 2), 2.0), (3, 2))
      >>> packed(lambda v, x: x @ v["kernel"])({"kernel": leaf}, jnp.ones((1, 3))).tolist()
      [[6.0, 6.0]]
    """

    own = getattr(apply, "on_packed", None)
    if isinstance(own, OnPacked) and own.of is apply:
        return own.run

    @wraps(apply)
    def packed_apply(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        outs, tree, found = _evaluate(apply, variables, inputs, static)
        if found:
            warnings.warn(
                f"{len(found)} packed leaves were unpacked where they were used: {'; '.join(map(str, found))}. There they are "
                "no faster than dense ones.",
                UnpackedWarning,
                stacklevel=2,
            )
        return jax.tree.unflatten(tree, outs)

    return packed_apply


@checked
def unpacked(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> tuple[Unpacked, ...]:
    """Return what `packed` would unpack, and where; nothing is computed.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.leaves.low_rank import LowRank
      >>> leaf = LowRank(jnp.ones((3, 1)), jnp.ones((1, 2)), (3, 2))
      >>> [str(one) for one in unpacked(lambda v, x: jnp.sin(v["kernel"]) * x, {"kernel": leaf}, 1.0)]
      ['kernel (LowRank) at sin']
    """
    found: list[Unpacked] = []

    def evaluate(variables: PyTree, *inputs: Any) -> list[Any]:
        outs, _, names = _evaluate(apply, variables, inputs, static)
        found.extend(names)
        return outs

    jax.eval_shape(evaluate, variables, *inputs)
    return tuple(found)


def _evaluate(apply: Apply, variables: PyTree, inputs: Sequence[Any], static: Any) -> tuple[list[Any], Any, list[Unpacked]]:
    traced = trace(apply, dense_shapes(variables), *dense_shapes(tuple(inputs)), **static)
    arrays, _ = split_keywords(static)
    leaves = jax.tree_util.tree_flatten_with_path((variables, tuple(inputs), arrays), is_leaf=is_packed)[0]
    interpreter = PackedInterpreter(traced)
    outs = interpreter.run([entered(leaf, path_str(key_path[1:])) for key_path, leaf in leaves])
    return outs, traced.out_tree, list(interpreter.unpacked)


def entered(leaf: Any, path: Path) -> Any:
    """Return a packed leaf in the form in which it runs; any other as it is."""
    form = leaf.native(path) if is_packed(leaf) else leaf
    return _Opaque(leaf, path) if form is None else form
