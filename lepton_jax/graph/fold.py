"""Batch-norm folding: what depends on variables alone is computed once, and scales and shifts go into the weights."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.affine import AFFINE, Affine, Compute, Const, Keep, extend, start
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import ARITHMETIC, PLAIN_CALLS, PRODUCTS, REMATS
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, split_keywords, trace


@checked
def fold_batch_norm(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> tuple[Apply, dict[str, Array]]:
    """Fold batch norms, and all that depends on variables alone, into new variables for inference.

    With a convolution's (or dot's) output ``y = W x``, ``(y - mean) * scale / sqrt(var + eps) + bias`` is
    ``(W s) x + (bias - mean s)`` with ``s = scale / sqrt(var + eps)`` for each channel. The scale goes into the weight only
    if nothing else uses ``y``. Every other value of variables alone is computed once.

    Works through `jit` and `remat`; inside `scan`, `while` and `cond` operations stay as they are. Train mode has no
    statistics of variables alone, so nothing of it is folded: pass the eval-mode apply. Values are equal within rounding.

    Args:
      apply: an eval-mode function ``apply(variables, *inputs, **static)``.
      variables: its variables, arrays.
      *inputs: example inputs, or their shapes.
      **static: its keywords; they are fixed in the new function unless given anew.

    Returns:
      ``(new_apply, new_variables)``: ``new_apply(new_variables, *inputs)`` for inputs of any batch size, and a dict of
      arrays: leaves kept as they were have their old path, folded ones the name of their operation and ``/kernel`` or
      ``/bias``. It is an ordinary function, for jit and `jax.export`.

    Raises:
      ValueError: from the new function, if its arguments lead through another program than the one folded.

    Example:
      >>> def apply(v, x):
      ...     return (x @ v["kernel"] - v["mean"][None]) * v["scale"][None]
      >>> v = {"kernel": jnp.ones((1, 2)), "mean": jnp.array([1.0, 2.0]), "scale": jnp.array([2.0, 3.0])}
      >>> folded, variables = fold_batch_norm(apply, v, jnp.ones((1, 1)))
      >>> {name: value.tolist() for name, value in variables.items()}
      {'dot_general/kernel': [[2.0, 3.0]], 'dot_general/bias': [[-2.0, -6.0]]}
      >>> folded(variables, jnp.ones((1, 1))).tolist()
      [[0.0, -3.0]]
    """
    shapes = jax.eval_shape(lambda tree: tree, variables)
    leaves = jax.tree.leaves(variables)
    kept: dict[str, Array] = {}

    def compute_and_keep(name: str, compute: Compute) -> Array:
        if name not in kept:
            with jax.ensure_compile_time_eval():
                kept[name] = jnp.asarray(compute())
        return kept[name]

    _discover(apply, shapes, leaves, compute_and_keep, inputs, static)

    @wraps(apply)
    def folded(variables: Mapping[str, Array], *inputs: Any, **keywords: Any) -> PyTree:
        def look_up(name: str, compute: Compute) -> Array:
            if name not in variables:
                raise ValueError(
                    f"{name} is not among the folded variables ({', '.join(variables)}): with these inputs {apply} is another "
                    "program than the one that was folded. Fold it anew with them as the example."
                )
            return variables[name]

        return _run(apply, shapes, [None] * len(leaves), look_up, inputs, {**static, **keywords})

    return folded, kept


def folding(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> tuple[Callable[[PyTree], dict[str, Array]], Apply]:
    """Make a function that folds any values of the variables, and that can be differentiated; see `fold_batch_norm`.

    For training with folded weights: ``loss(folded(view(fold(variables)), inputs))``.

    Args:
      apply: an eval-mode function.
      variables: arrays, of the shapes that will be folded.
      *inputs: example inputs, or their shapes.
      **static: its keywords.

    Returns:
      ``(fold, folded)``: ``fold(variables)`` gives what `fold_batch_norm` makes of them, ``folded`` is its new function.

    Example:
      >>> def apply(v, x):
      ...     return (x @ v["kernel"]) * v["scale"][None]
      >>> v = {"kernel": jnp.ones((1, 2)), "scale": jnp.array([2.0, 3.0])}
      >>> fold, folded = folding(apply, v, jnp.ones((1, 1)))
      >>> jax.grad(lambda v: jnp.sum(fold(v)["dot_general/kernel"]))(v)["scale"].tolist()
      [1.0, 1.0]
    """
    folded, example = fold_batch_norm(apply, variables, *inputs, **static)
    shapes = jax.eval_shape(lambda tree: tree, (variables, example))

    def fold(variables: PyTree) -> dict[str, Array]:
        leaves = jax.tree.leaves(variables)
        promised: dict[str, Compute] = {}

        def note(name: str, compute: Compute) -> Array:
            # Computed below, outside of the tracing of the inputs' part: its values would belong to that trace.
            promised.setdefault(name, compute)
            return jnp.zeros(shapes[1][name].shape, shapes[1][name].dtype)

        _discover(apply, shapes[0], leaves, note, inputs, static)
        return {name: jnp.asarray(compute()) for name, compute in promised.items()}

    return fold, folded


def _discover(
    apply: Apply, shapes: PyTree, leaves: Sequence[Any], keep: Keep, inputs: Sequence[Any], static: Mapping[str, Any]
) -> None:
    """Go through the graph at the inputs' shapes, so that `keep` sees all that is to be kept."""
    arrays, fixed = split_keywords(static)
    jax.eval_shape(lambda *xs, **ks: _run(apply, shapes, leaves, keep, xs, {**fixed, **ks}), *inputs, **arrays)


def _run(
    apply: Apply, shapes: PyTree, leaves: Sequence[Any], keep: Keep, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> PyTree:
    traced = trace(apply, shapes, *inputs, **keywords)
    promises = [
        Const(path, partial(_itself, leaf), True, _compat.aval(var).shape)
        for path, leaf, var in zip(traced.variables, leaves, traced.jaxpr.invars)
    ]
    arrays, _ = split_keywords(keywords)
    values = traced.flatten(shapes, inputs, arrays)
    return jax.tree.unflatten(traced.out_tree, _Folding(traced, keep).run([*promises, *values[len(promises) :]]))


class _Folding(Interpreter):
    """Evaluates a graph whose variables are promises, kept when an operation of the inputs needs them.

    When folding, `keep` computes a promise and remembers it under its name; when the folded function runs, it looks the
    name up. Both take the same decisions, for these depend on the graph alone.
    """

    def __init__(self, traced: Traced, keep: Keep):
        super().__init__(traced)
        self.keep = keep
        self.uses = _use_counts(traced)

    def dense(self, value: Any) -> Any:
        if isinstance(value, Affine):
            return value.array(self.keep, self.dense)
        return value.array(self.keep) if isinstance(value, Const) else value

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        return super().evaluate(jaxpr, [_constant(const) for const in consts], values, path, scope)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        for value, var in zip(values, eqn.invars):
            if isinstance(value, Affine) and self.uses[eqn.jaxpr_path, var] > 1:
                value.shared = True
        constants = [_as_const(v, var) for v, var in zip(values, eqn.invars)]
        if eqn.primitive in PLAIN_CALLS | REMATS:
            [body] = eqn.bodies
            return self.inner(eqn, body, constants)
        if all(isinstance(value, Const) for value in constants):
            promised = self._promise(eqn, constants)
            if promised is not None:
                return promised
        lazy = None
        if eqn.primitive in PRODUCTS:
            lazy = start(eqn, self.name(eqn), values)
        elif eqn.primitive in AFFINE:
            lazy = extend(eqn, constants)
        if lazy is not None:
            return [lazy]
        dense = [self.dense(value) for value in values]
        if eqn.bodies and not eqn.primitive.startswith("custom_"):
            return Interpreter(self.traced).default(eqn, dense)
        return _compat.bind(eqn.raw, dense)

    def _promise(self, eqn: Equation, values: Sequence[Const]) -> list[Any] | None:
        """Promise an operation's results, unless that would keep something as large as a batch."""
        name, of_variables = self.name(eqn), any(value.of_variables for value in values)
        shape = eqn.out_avals[0].shape if eqn.outvars else ()
        if eqn.primitive == "broadcast_in_dim" and of_variables:
            [value] = values
            small = [1] * len(shape)
            for axis, size in zip(eqn.params["broadcast_dimensions"], value.small):
                small[axis] = size
            return [Const(name, lambda: jnp.reshape(value.compute(), small), of_variables, tuple(small), shape)]
        sizes = [value.lined_up(len(shape)) for value in values]
        if all(value.small == value.shape for value in values):
            smalls = [tuple(aval.shape) for aval in eqn.out_avals]
        elif eqn.primitive in ARITHMETIC and None not in sizes:
            smalls = [tuple(int(size) for size in np.max(np.array(sizes), axis=0))]
        else:
            return None
        results: list[list[Array]] = []

        def compute(index: int) -> Array:
            # A value of no variable is not remembered: it would belong to one trace.
            outs = results[0] if results else _compat.bind(eqn.raw, [value.compute() for value in values])
            if of_variables and not results:
                results.append(outs)
            return outs[index]

        return [
            Const(name if i == 0 else f"{name}.{i}", partial(compute, i), of_variables, small, aval.shape)
            for i, (small, aval) in enumerate(zip(smalls, eqn.out_avals))
        ]


def _itself(leaf: Array) -> Array:
    return leaf


def _as_const(value: Any, var: Any) -> Any:
    """A literal as a constant, any other value as it is."""
    return _constant(value) if _compat.is_literal(var) else value


def _constant(value: Any) -> Const:
    """What no variable plays a part in."""
    return Const("", lambda: value, False, np.shape(value))


def _use_counts(traced: Traced) -> Counter[tuple[CallPath, Any]]:
    counts: Counter[tuple[CallPath, Any]] = Counter()
    ends: list[tuple[CallPath, Any]] = [((), traced.jaxpr)]
    for eqn in traced.equations():
        counts.update((eqn.jaxpr_path, var) for var in eqn.invars if not _compat.is_literal(var))
        ends += [((*eqn.path, body.label), body.jaxpr) for body in eqn.bodies]
    for path, jaxpr in ends:
        counts.update((path, var) for var in jaxpr.outvars if not _compat.is_literal(var))
    return counts
