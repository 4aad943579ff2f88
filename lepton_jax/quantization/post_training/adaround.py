"""AdaRound: learn whether each weight is rounded up or down."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.formats import Format, Uniform
from lepton_jax.graph.moments import damped, oracle_damping
from lepton_jax.quantization.post_training.grid import output_error, snap
from lepton_jax.quantization.post_training.layers import Matrix

_LOW, _HIGH = -0.1, 1.1  # the stretch of the sigmoid, equation 23


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaRound:
    """AdaRound, for `quantize_layers`.

    Every weight becomes ``scale * (floor(w / scale) + h)`` with ``h = clip(1.2 sigmoid(v) - 0.1, 0, 1)``, and v is learned by
    Adam for ``tr(dW' H dW) / e + lambda * mean(1 - |2 h - 1|^beta)``, where e is the error of rounding to nearest. In the
    first part of the steps the second term, which drives h to 0 or 1, is off; then lambda grows, and beta falls from 20 to 2.
    A layer's reconstruction error is quadratic in its weights, so it is taken over all calibration inputs at each step, through
    H alone. To H is added what the number of rows asks for (`oracle_damping`), and reported.

    Args:
      steps: of Adam.
      learning_rate: of Adam.
      weights: of the second term, at its beginning and at the end, growing by a constant factor.
      warm_up: the part of the steps without it.
      betas: likewise, falling.
      passes: afterwards, through all weights, rounding the other way what then has less error.

    Raises:
      ValueError: for settings out of range; when called, for a format whose levels are not evenly spaced.

    Example:
      >>> weight, hessian = jnp.array([[0.4], [0.45]]), jnp.array([[1.0, 0.99], [0.99, 1.0]])
      >>> from lepton_jax.quantization import Uniform
      >>> from lepton_jax.quantization.post_training.grid import Grid
      >>> grid = Grid(jnp.ones((2, 1)), jnp.zeros((2, 1)))
      >>> float(AdaRound(steps=200)(Matrix(weight, hessian, grid), Uniform(bits=2))[0].sum())  # to nearest: 0
      1.0

    Source: Nagel, Amjad, van Baalen, Louizos, Blankevoort 2020, "Up or down? Adaptive rounding for post-training quantization",
    equations 21 to 25. Deviations: the error is relative, the second term a growing mean, batches are whole, the passes at the
    end, the damping; the error is that of the layer before its activation.
    """

    steps: int = 500
    learning_rate: float = 0.05
    weights: tuple[float, float] = (0.01, 10.0)
    warm_up: float = 0.2
    betas: tuple[float, float] = (20.0, 2.0)
    passes: int = 3

    def __post_init__(self) -> None:
        check_whole("AdaRound: steps", self.steps, 1)
        check_whole("AdaRound: passes", self.passes, 0)
        if not (self.learning_rate > 0 and min(self.weights) > 0 and 0 <= self.warm_up < 1 and min(self.betas) > 0):
            raise ValueError(f"AdaRound: learning_rate, weights and betas must be above 0 and warm_up in [0, 1); got {self}.")

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        if not isinstance(fmt, Uniform):
            raise ValueError(f"AdaRound: needs evenly spaced levels, a Uniform format; got {fmt}. Use Gptq for others.")
        damping = jnp.float32(0) if matrix.rows is None else oracle_damping(matrix.hessian, matrix.rows)
        return _learn(matrix._replace(hessian=damped(matrix.hessian, damping)), fmt, self), damping


@partial(jax.jit, static_argnums=(1, 2))
def _learn(matrix: Matrix, fmt: Uniform, settings: AdaRound) -> Array:
    weight, hessian, grid, _ = matrix
    low, high = fmt.q_range
    scale, zero_point = (jnp.broadcast_to(part, weight.shape).astype(jnp.float32) for part in grid)
    steps = weight / scale + zero_point
    below = jnp.floor(steps)
    share = jnp.clip(steps - below, 1e-4, 1 - 1e-4)
    nearest = jnp.sum(output_error(snap(weight, grid, fmt) - weight, hessian))
    unit = jnp.where(nearest > 0, nearest, 1)

    def soft(v: Array) -> Array:
        return jnp.clip(jax.nn.sigmoid(v) * (_HIGH - _LOW) + _LOW, 0, 1)

    def levels(h: Array) -> Array:
        return (jnp.clip(below + h, low, high) - zero_point) * scale

    def loss(v: Array, beta: Array, on: Array) -> Array:
        h = soft(v)
        error = jnp.sum(output_error(levels(h) - weight, hessian)) / unit
        # |2 h - 1|^beta has no derivative at 0 through a power of zero.
        sharp = 1 - jnp.maximum(jnp.abs(2 * h - 1), 1e-6) ** beta
        return error + on * jnp.mean(sharp)

    first = (share - _LOW) / (_HIGH - _LOW)
    v = jnp.log(first / (1 - first))
    optimizer = optax.adam(settings.learning_rate)
    begin = settings.warm_up * settings.steps

    def step(number: Array, state: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        v, moments = state
        part = jnp.clip((number - begin) / max(settings.steps - begin, 1), 0, 1)
        start, end = settings.betas
        beta = end + 0.5 * (start - end) * (1 + jnp.cos(part * jnp.pi))
        strength = settings.weights[0] * (settings.weights[1] / settings.weights[0]) ** part
        grads = jax.grad(loss)(v, beta, strength * (number >= begin))
        updates, moments = optimizer.update(grads, moments)
        return v + updates, moments

    v, _ = jax.lax.fori_loop(0, settings.steps, step, (v, optimizer.init(v)))
    ups = jnp.round(soft(v))
    for _ in range(settings.passes):
        ups = _polished(ups, weight, hessian, levels)
    return levels(ups)


def _polished(ups: Array, weight: Array, hessian: Array, levels: Callable[[Array], Array]) -> Array:
    """Go through the inputs once, and round the other way what then has less error, the other weights fixed."""
    diagonal = jnp.diagonal(hessian)
    other = levels(1 - ups)
    start = levels(ups) - weight

    def row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ups, held, slope = state
        change = other[i] - weight[i] - held[i]
        better = change * (change * diagonal[i] + 2 * slope[i]) < 0
        change = jnp.where(better, change, 0)
        slope += hessian[:, i][:, None] * change[None]
        return ups.at[i].set(jnp.where(better, 1 - ups[i], ups[i])), held.at[i].add(change), slope

    slope = jnp.matmul(hessian, start, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.fori_loop(0, weight.shape[0], row, (ups, start, slope))[0]
