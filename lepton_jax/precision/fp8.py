"""Dots in eight bits with delayed scaling: scales from the largest values that earlier steps saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.primitives import OWN_DERIVATIVES
from lepton_jax.graph.trace import Apply, Equation
from lepton_jax.precision.policy import floating_dtype
from lepton_jax.precision.rules import Rules, is_wide

COLLECTION = "amax"
"""The collection, beside ``params``, that holds the histories."""


class Amax(NamedTuple):
    """The largest absolute values of the last steps, newest first, of a dot's operands and of its result's gradient.

    Attributes:
      lhs: float32 ``[history]``; in a scan ``[length, history]``.
      rhs: likewise.
      grad: likewise.
    """

    lhs: Array
    rhs: Array
    grad: Array


@checked
@dataclass(frozen=True, kw_only=True)
class Fp8:
    """Dots in eight bits: ``dot(q(x), q(w))`` forward, ``dot(q(g), q(w))`` and ``dot(q(x), q(g))`` backward.

    ``q(x) = cast(clip(x * s)) / s`` with ``s = max(dtype) / (2**margin * max(history))``; 1 while the history is zero. The
    operands are first scaled and rounded to eight bits, then computed with in the policy's compute dtype: a pair of casts
    around a dot, which XLA turns into a dot of eight bits on devices that have one.

    Args:
      forward: dtype of operands; e4m3 has the finer steps.
      backward: dtype of gradients; e5m2 has the wider range.
      history: steps that the maximum is taken over, at least 1.
      margin: powers of two left free for growth.

    Raises:
      TypeError: for dtypes that are not floating of eight bits.
      ValueError: for settings out of range.

    Example:
      >>> Fp8(history=4).margin
      0

    Source: Micikevicius et al. 2022, "FP8 formats for deep learning", sections 3 and 4; delayed scaling as in NVIDIA's
    Transformer Engine (``fp8_max / amax / 2^margin``, the maximum over the history).
    """

    forward: Any = "float8_e4m3fn"
    backward: Any = "float8_e5m2"
    history: int = 16
    margin: int = 0

    def __post_init__(self) -> None:
        check_whole("Fp8: history", self.history, 1)
        check_whole("Fp8: margin", self.margin, 0, 8)
        for name in ("forward", "backward"):
            object.__setattr__(self, name, floating_dtype(f"Fp8: {name}", getattr(self, name)))
        with collect("Fp8", TypeError) as problems:
            for name in ("forward", "backward"):
                dtype = getattr(self, name)
                if dtype.itemsize != 1 or jnp.finfo(dtype).bits != 8:
                    problems.append(f"{name}: must be float8_e4m3fn, float8_e5m2 or another of eight bits; got {dtype.name}")

    def scale(self, history: Array, dtype: Any) -> Array:
        """Return the factor that values are multiplied by before they are cast.

        Example:
          >>> Fp8(margin=1).scale(jnp.array([3.5, 1.0]), jnp.float8_e4m3fn).item()
          64.0
        """
        amax = jnp.max(history)
        scale = float(jnp.finfo(dtype).max) / 2.0**self.margin / jnp.where(amax > 0, amax, 1.0)
        return jnp.where((amax > 0) & jnp.isfinite(scale), scale, 1.0)

    def rounded(self, x: Array, history: Array, dtype: Any) -> Array:
        """Return `x` rounded to what eight bits hold at the history's scale, in its own dtype.

        Example:
          >>> Fp8().rounded(jnp.array([447.0, 1.06, 1e9]), jnp.array([448.0]), jnp.float8_e4m3fn).tolist()
          [448.0, 1.0, 448.0]
        """
        top = float(jnp.finfo(dtype).max)
        scale = self.scale(history, dtype)
        # NaN passes; what is beyond the largest value saturates: the next step's scale makes room for it.
        small = jnp.clip(x.astype(jnp.float32) * scale, -top, top).astype(dtype)
        return (small.astype(jnp.float32) / scale).astype(x.dtype)

    def pushed(self, x: Array, history: Array) -> Array:
        """Return the history with the largest absolute value of `x` in front, and the oldest gone.

        A value that is not finite (an overflow under loss scaling) leaves the history as it was.

        Example:
          >>> Fp8().pushed(jnp.array([-3.0, 1.0]), jnp.array([2.0, 5.0])).tolist()
          [3.0, 2.0]
        """
        amax = jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0.0)
        return jnp.where(jnp.isfinite(amax), jnp.roll(history, 1).at[0].set(amax), history)


def dot(fp8: Fp8, eqn: Equation, dtype: Any, lhs: Array, rhs: Array, amax: Amax) -> Array:
    """Run a traced dot or convolution in eight bits.

    The derivative with respect to a history is the *new history*: gradients of the collection take its place.

    Args:
      fp8: the settings.
      eqn: the operation.
      dtype: that the rounded operands are multiplied in, and of the result.
      lhs: in that dtype.
      rhs: in that dtype.
      amax: the operation's histories.
    """

    def run(x: Array, w: Array) -> Array:
        [out] = _compat.bind(eqn.raw, [x, w], preferred_element_type=dtype, precision=None)
        return out

    return _dot(fp8, run, lhs, rhs, amax)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dot(fp8: Fp8, run: Any, lhs: Array, rhs: Array, amax: Amax) -> Array:
    return _forward(fp8, run, lhs, rhs, amax)[0]


def _forward(fp8: Fp8, run: Any, lhs: Array, rhs: Array, amax: Amax) -> tuple[Array, Any]:
    x, w = fp8.rounded(lhs, amax.lhs, fp8.forward), fp8.rounded(rhs, amax.rhs, fp8.forward)
    histories = (fp8.pushed(lhs, amax.lhs), fp8.pushed(rhs, amax.rhs), amax.grad)
    # Saved in eight bits: the scaled values are exact in them.
    scales = fp8.scale(amax.lhs, fp8.forward), fp8.scale(amax.rhs, fp8.forward)
    small = [(v.astype(jnp.float32) * s).astype(fp8.forward) for v, s in zip((x, w), scales)]
    return run(x, w), (small, scales, histories)


def _backward(fp8: Fp8, run: Any, saved: Any, grad: Array) -> tuple[Array, Array, Amax]:
    small, scales, (lhs, rhs, history) = saved
    x, w = ((v.astype(jnp.float32) / s).astype(grad.dtype) for v, s in zip(small, scales))
    _, transposed = jax.vjp(run, x, w)
    dx, dw = transposed(fp8.rounded(grad, history, fp8.backward))
    return dx, dw, Amax(lhs, rhs, fp8.pushed(grad, history))


_dot.defvjp(_forward, _backward)


@checked
def init_amax(
    apply: Apply,
    fp8: Fp8,
    variables: PyTree,
    *inputs: Any,
    compute: str | tuple[str, ...] = (),
    float32: str | tuple[str, ...] = (),
    **static: Any,
) -> dict[str, Amax]:
    """Return empty histories for every dot and convolution that `autocast` will run in eight bits, by operation name.

    Put them into the variables as the collection ``"amax"``.

    Args:
      apply: the function that `autocast` is given.
      fp8: the settings.
      variables: without the collection; shapes and dtypes will do.
      *inputs: likewise.
      compute: as for `autocast`.
      float32: as for `autocast`.
      **static: keywords of `apply`.

    Raises:
      ValueError: if there is no such dot.

    Example:
      >>> amax = init_amax(lambda v, x: x @ v["w"], Fp8(history=2), {"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
      >>> amax["dot_general"].grad.tolist()
      [0.0, 0.0]
    """
    rules, found = Rules(compute=compute, float32=float32), {}
    traced = rules.trace(apply, variables, *inputs, **static)
    closed = OWN_DERIVATIVES | {"while", "shard_map"}
    hidden = [eqn.path for eqn in traced.equations() if eqn.primitive in closed]
    for eqn in traced.equations():
        if not has_fp8(eqn, rules(eqn, traced.names[eqn.path])[0]) or any(eqn.path[: len(p)] == p for p in hidden):
            continue
        lengths = (length for _, length in traced.stacks(eqn))
        zeros = jnp.zeros((*lengths, fp8.history), jnp.float32)
        found[traced.names[eqn.path]] = Amax(zeros, jnp.copy(zeros), jnp.copy(zeros))
    if not found:
        raise ValueError(f"init_amax: {traced.name} has no dot or convolution that runs in the compute dtype; see `explain`.")
    return found


def has_fp8(eqn: Equation, kind: str) -> bool:
    """Whether an operation of this kind can run in eight bits: a dot or convolution of two values in float32."""
    dots = ("dot_general", "conv_general_dilated")
    return kind == "compute" and eqn.primitive in dots and all(is_wide(aval) for aval in (*eqn.in_avals, *eqn.out_avals))


def part(variables: PyTree) -> tuple[PyTree, Mapping[str, Amax]]:
    """Part variables into the model's own and the histories.

    Raises:
      ValueError: if there are none.

    Example:
      >>> part({"params": 1, "amax": {}})
      ({'params': 1}, {})
    """
    if not isinstance(variables, Mapping) or COLLECTION not in variables:
        keys = ", ".join(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"autocast(fp8=...): the variables must be a mapping with the collection {COLLECTION!r}, of init_amax; got {keys}."
        )
    return {name: value for name, value in variables.items() if name != COLLECTION}, variables[COLLECTION]


@checked
def next_amax(variables: Mapping[str, Any], grads: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables whose histories are those that differentiation handed out.

    Args:
      variables: with the collection "amax".
      grads: gradients of the same tree.

    Example:
      >>> next_amax({"w": 1.0, "amax": 2.0}, {"w": 0.1, "amax": 3.0})
      {'w': 1.0, 'amax': 3.0}
    """
    return {**variables, COLLECTION: grads[COLLECTION]}


@checked
def with_amax(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let an optimiser train parameters that have the collection "amax" beside them: it is replaced, not stepped.

    Args:
      tx: for all but the collection.

    Example:
      >>> params = {"w": jnp.ones(1), "amax": jnp.zeros(1)}
      >>> tx = with_amax(optax.sgd(0.5))
      >>> updates, _ = tx.update({"w": jnp.ones(1), "amax": jnp.full(1, 7.0)}, tx.init(params), params)
      >>> {name: leaf.item() for name, leaf in optax.apply_updates(params, updates).items()}
      {'amax': 7.0, 'w': 0.5}
    """
    wrapped = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> Any:
        return wrapped.init(part(params)[0])

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise TypeError("with_amax: update needs the parameters: tx.update(grads, state, params).")
        (grads, new), (own, old) = part(updates), part(params)
        changes, state = wrapped.update(grads, state, own, **extra)
        return {**changes, COLLECTION: jax.tree.map(jnp.subtract, new, old)}, state

    return optax.GradientTransformationExtraArgs(init, update)
