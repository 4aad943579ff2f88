"""Programs of files, with the operations done otherwise that XLA on CPU is slow at."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax import export

_SLOW = (b"convolution", b"reduce_window", b"select_and_scatter")
"""What there are other forms of; a program without them is not looked into."""


def fast(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return `lepton_jax.graph.fast_lowering` of a function; of the `apply` of a loaded file, of its program.

    Args:
      apply: pure function ``apply(variables, *inputs)``.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from lepton_jax import load, save
      >>> def apply(kernel, x):
      ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> kernel, x = jnp.ones((3, 3, 4, 8)), jnp.ones((1, 2, 2, 4))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", apply, kernel, x)
      ...     model = load(f"{folder}/m.lepton")
      >>> bool((jax.jit(fast(model.apply))(kernel, x) == jax.jit(fast(apply))(kernel, x)).all())
      True
    """
    from lepton_jax.artifact.artifact import Artifact  # which runs programs by `lowered`
    from lepton_jax.graph.lowering import fast_lowering  # not needed to read a file

    origin = getattr(apply, "__self__", None)
    if not isinstance(origin, Artifact):
        return fast_lowering(apply)

    @wraps(apply)
    def run(variables: Any, *inputs: Any) -> Any:
        return origin._applied(variables, inputs, lowering=True)

    return run


def lowered(exported: export.Exported) -> Callable[..., Any]:
    """Return ``exported.call`` in other forms where that pays, and on a CPU; else as it is, to the bit.

    The program's operations are done one by one, as `lepton_jax.artifact.stablehlo` has them. One that holds an operation
    which is not known there runs as it is.

    Args:
      exported: whose bytes have been checked.
    """

    def call(*arguments: Any) -> Any:
        found = _lowered(exported, arguments)
        return exported.call(*arguments) if found is None else jax.tree.unflatten(exported.out_tree, found)

    return call


def _lowered(exported: export.Exported, arguments: tuple[Any, ...]) -> list[Any] | None:
    """The flat results; None if nothing is to be done otherwise."""
    if jax.default_backend() != "cpu" or not any(name in exported.mlir_module_serialized for name in _SLOW):
        return None
    expected = jax.tree.leaves(jax.eval_shape(exported.call, *arguments))  # raises what is wrong with the arguments
    from lepton_jax.artifact.stablehlo.evaluate import Program
    from lepton_jax.artifact.stablehlo.rules import RULES
    from lepton_jax.graph.lowering.apply import Lowering, traced_call
    from lepton_jax.graph.lowering.rules import DEFAULT

    try:
        traced, values = traced_call(Program(exported, RULES), tuple(jax.tree.leaves(arguments)), {})
    except Exception:  # whatever a rule raises for an operation that it does not know in this shape
        return None
    lowering = Lowering(traced, DEFAULT, {})
    if not lowering.fires():
        return None
    found = lowering.run(values)
    return found if all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(found, expected, strict=True)) else None
