"""Proof by trial: the shrunk model computes what the masked one does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.paths import flatten, is_floating, replace
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.channels.plan import Plan

_NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far the shrunk model is from the masked one.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from lepton_jax.pruning.channels import plan
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.ones((3, 1))}
      >>> found = verify(plan(apply, variables, jnp.ones((1, 1)), fraction=1 / 3), apply, variables, jnp.ones((1, 1)))
      >>> max(found.outputs.values()) < 1e-5, sorted(found.gradients)
      (True, ['down', 'up'])
    """

    outputs: Mapping[Path, float]
    """The largest difference of every output, relative to its largest value."""
    gradients: Mapping[Path, float]
    """The same of the gradient of every variable, kept slices only."""

    @property
    def worst(self) -> float:
        """The largest of all."""
        return max([0.0, *self.outputs.values(), *self.gradients.values()])


@checked
def verify(
    plan: Plan,
    apply: Apply,
    variables: PyTree,
    *inputs: Any,
    rtol: float = 1e-5,
    gradients: bool = True,
    keywords: Mapping[str, Any] | None = None,
) -> Verification:
    """Check that masked equals shrunk: outputs, updated state, and gradients.

    The gradient is that of the inner product of all floating outputs with fixed random numbers. A difference is taken
    relative to the largest absolute value of the output or gradient, or to a tenth of the largest of all, where that is
    more: a gradient that is 0 but for rounding (of a bias before a normalisation) has no scale of its own.

    Args:
      plan: a plan for `apply`.
      apply: ``apply(variables, *inputs, **keywords)``.
      variables: at the original shapes.
      *inputs: with values.
      rtol: the largest relative difference allowed.
      gradients: whether to compare gradients too.
      keywords: further arguments of `apply`.

    Returns:
      The differences found.

    Raises:
      ValueError: if any exceeds `rtol`, or is not finite; with every path where.

    Example:
      >>> from lepton_jax.pruning.channels import plan as make_plan
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.ones((2, 4)), "down": jnp.ones((4, 3))}
      >>> half = make_plan(apply, variables, jnp.ones((1, 2)), fraction=0.5)
      >>> verify(half, apply, variables, jnp.ones((1, 2))).worst
      0.0
    """
    keywords = dict(keywords or {})
    masked, small = jax.jit(plan.mask)(variables), jax.jit(plan.shrink)(variables)  # leaf by leaf, each would be a program
    masked_outs, masked_grads = _run(apply, masked, inputs, keywords, plan, cut=False, gradients=gradients)
    outs, grads = _run(plan.rewrite(apply), small, inputs, keywords, plan, cut=True, gradients=gradients)
    found = Verification(outputs=_compare(masked_outs, outs, plan), gradients=_compare(masked_grads, grads, plan))
    with collect(f"Masked and shrunk disagree by more than rtol={rtol} of the largest value") as problems:
        for kind, errors in (("output", found.outputs), ("gradient of", found.gradients)):
            problems += [f"{kind} {path}: {error:.2e}" for path, error in errors.items() if not error <= rtol]
    return found


def _run(
    apply: Apply, variables: PyTree, inputs: Any, keywords: dict[str, Any], plan: Plan, *, cut: bool, gradients: bool
) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Outputs, and gradients of their inner product with random numbers, by path."""
    floats = {path: leaf for path, leaf in flatten(variables).items() if is_floating(leaf)}

    def loss(floats: dict[Path, Any], *args: Any) -> tuple[Any, dict[Path, Any]]:
        outs = flatten(apply(replace(variables, floats), *args, **keywords))
        total = jnp.zeros(())
        for index, (path, out) in enumerate(outs.items()):
            if is_floating(out):
                shape = _original_shape(plan, path, out)
                weights = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), shape)
                total += jnp.sum(out.astype(jnp.float32) * (_cut(plan, path, weights, out) if cut else weights))
        return total, outs

    if not gradients or not floats:
        return jax.jit(loss)(floats, *inputs)[1], {}
    grads, outs = jax.jit(jax.grad(loss, has_aux=True))(floats, *inputs)
    return outs, grads


def _original_shape(plan: Plan, path: Path, out: Any) -> tuple[int, ...]:
    """The shape that an output has in the masked model: updated state has that of its variable."""
    variable = plan.find(path)
    return plan.shapes[variable] if variable is not None and plan.left(variable) == out.shape else out.shape


def _cut(plan: Plan, path: Path, value: Any, like: Any) -> Any:
    return value if value.shape == like.shape else plan.cut(path, value)


def _compare(masked: Mapping[Path, Any], shrunk: Mapping[Path, Any], plan: Plan) -> dict[Path, float]:
    pairs = {
        path: (np.asarray(_cut(plan, path, masked[path], small)).astype(np.float64), np.asarray(small).astype(np.float64))
        for path, small in shrunk.items()
        if not jnp.issubdtype(small.dtype, jax.dtypes.prng_key)
    }
    sizes = {path: np.abs(whole).max(initial=0.0) for path, (whole, _) in pairs.items()}
    floor = _NOISE * max(sizes.values(), default=0.0)
    errors = {}
    for path, (whole, small) in pairs.items():
        difference = np.abs(whole - small).max(initial=0.0)
        scale = max(sizes[path], floor)
        errors[path] = float(difference / scale) if scale > 0 else float(difference)
    return errors
