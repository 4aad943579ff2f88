"""The divergence of outputs to second order: a few backward passes for all leaves and all changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.tuning.outputs import Outputs, is_single

PROBES = 32


class Gradients:
    """Estimates what `Outputs` measures: called with a leaf, ``mean_k (g_k' dw)^2 / 2`` per example.

    With J the derivative of an example's logits and ``H = diag(p) - p p'``, ``KL = dw' J' H J dw / 2`` to second order. With
    ``g = sum_i J_i' B_i e_i``, ``B B' = H`` and independent e of mean 0 and variance 1, ``E g g' = sum_i J_i' H_i J_i``. Of
    "error", H is the identity, over ``|dense|^2 / 2``.

    Args:
      outputs: of the model.
      leaves: paths of those that will change.
      probes: how many g.

    Example:
      >>> apply = lambda v, x: x @ v["w"]
      >>> outputs = Outputs(apply, {"w": jnp.eye(2)}, [(jnp.eye(2),)], "error")
      >>> 0.2 < Gradients(outputs, ["w"], probes=64)("w", 1.5 * jnp.eye(2)) < 0.3  # 0.25
      True
    """

    def __init__(self, outputs: Outputs, leaves: Sequence[Path], probes: int = PROBES) -> None:
        held = paths.flatten(outputs.variables)
        self._leaves = {path: held[path] for path in leaves}
        self._grads: list[dict[Path, Array]] = []
        is_kl = outputs.divergence == "kl"

        def gradient(chosen: dict[Path, Array], key: Array, *inputs: Any) -> tuple[dict[Path, Array], Array]:
            def run(chosen: dict[Path, Array]) -> list[Array]:
                return outputs.floats(paths.replace(outputs.variables, chosen), *inputs)

            found, back = jax.vjp(run, chosen)
            keys = jax.random.split(key, len(found))
            both = [_direction(one, k, is_kl) for one, k in zip(found, keys)]
            return back([direction for direction, _ in both])[0], sum(size for _, size in both)  # type: ignore[return-value]

        run, size = jax.jit(gradient), 0.0
        for probe in range(probes):
            total: PyTree = None
            for number, inputs in enumerate(outputs.batches):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), probe), number)
                grads, count = run(self._leaves, key, *inputs)
                total = grads if total is None else jax.tree.map(jnp.add, total, grads)
                size += float(count) / probes
            self._grads.append(total)
        self._scale = (0.5 if is_kl else 1.0) / (probes * size if size else 1.0)

    def __call__(self, path: Path, leaf: Array) -> float:
        return self._moved({path: leaf})

    def of(self, variables: PyTree) -> float:
        """Return the estimate for other variables: of those of its leaves that are others."""
        held = paths.flatten(variables)
        return self._moved({path: held[path] for path, leaf in self._leaves.items() if held[path] is not leaf})

    def _moved(self, leaves: dict[Path, Array]) -> float:
        changes = {path: (leaf - self._leaves[path]).astype(jnp.float32) for path, leaf in leaves.items()}
        return self._scale * sum(
            sum(float(jnp.vdot(grads[path].astype(jnp.float32), change)) for path, change in changes.items()) ** 2
            for grads in self._grads
        )


def _direction(output: Array, key: Array, is_kl: bool) -> tuple[Array, Array]:
    """``B e`` for an output, and how much of the whole it is: examples, or its squared norm."""
    wide = output.astype(jnp.float32)
    if not is_kl:
        return jax.random.normal(key, output.shape).astype(output.dtype), jnp.sum(wide**2)
    noise = jax.random.normal(key, output.shape)
    if is_single(output):
        p = jax.nn.sigmoid(wide)
        return (jnp.sqrt(p * (1 - p)) * noise).astype(output.dtype), jnp.float32(output.size)
    p = jax.nn.softmax(wide)
    along = jnp.sqrt(p) * noise
    return (along - p * jnp.sum(along, -1, keepdims=True)).astype(output.dtype), jnp.float32(output[..., 0].size)
