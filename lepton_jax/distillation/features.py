"""Losses on features, channels last: hints, attention transfer, flow between layers, variational information."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_rank, check_same, unit, wide


@checked
def hints(student: Array, teacher: Array) -> Array:
    """Return half the mean squared difference between features.

    ``mean((s - t)**2) / 2``, where s is the student's features after a learned adapter (`Linear`) where widths differ.

    Args:
      student: ``[B, ...]``, any floating dtype; computed in float32 at least.
      teacher: the same shape.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for shapes that differ.

    Example:
      >>> hints(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])).item()
      1.0

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets", eq. (3). Deviations: mean instead of sum, so that the
    weight doesn't depend on the layer's size; the adapter is linear (1 x 1) whatever the layer is.
    """
    check_same("hints", student, teacher)
    return jnp.mean(jnp.square(wide(student) - wide(teacher))) / 2


@checked
def attention_transfer(student: Array, teacher: Array, *, power: float = 2.0) -> Array:
    """Return half the mean squared difference between normalized attention maps.

    ``mean_b |Q_s / |Q_s| - Q_t / |Q_t||**2 / 2`` with ``Q = sum_c |A_c|**power`` over the positions. Channels may differ in
    number. Features ``[B, D]`` of a dense layer are D positions with one channel.

    Args:
      student: ``[B, H, W, C]``, ``[B, L, C]`` or ``[B, D]``; computed in float32 at least.
      teacher: the same but for C.
      power: 1 or more; more looks at the largest activations only.

    Returns:
      float32 scalar, at most 1.

    Raises:
      ValueError: for positions that differ, or a power less than 1.

    Example:
      >>> s, t = jnp.array([[[2.0], [0.0]]]), jnp.array([[[0.0, 0.0], [1.0, 1.0]]])
      >>> attention_transfer(s, t).item()
      1.0

    Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1 (activation-based). Deviation:
    the norm is squared, as in the authors' code, so that its gradient at equality is 0.
    """
    if not power >= 1:
        raise ValueError(f"attention_transfer: power must be 1 or more; got {power}. The paper takes 2.")
    check_rank("attention_transfer", 2, "[B, D] or [B, ..., C]", student, teacher)
    student, teacher = (_attention(x, power) for x in (student, teacher))
    check_same("attention_transfer", student, teacher, "positions (all axes but batch and channels)")
    s, t = (unit(x.reshape(x.shape[0], -1)) for x in (student, teacher))
    return jnp.mean(jnp.sum(jnp.square(s - t), axis=-1)) / 2


def _attention(features: Array, power: float) -> Array:
    x = jnp.abs(wide(features)) ** power
    return x if x.ndim == 2 else jnp.sum(x, axis=-1)


@checked
def fsp(student: Sequence[Array], teacher: Sequence[Array]) -> Array:
    """Return the squared difference between the flow matrices of two layers, averaged over examples.

    ``mean_b |G_s - G_t|_F**2`` with ``G = A^T B / positions``, for A the first and B the second layer's features as matrices
    ``[positions, channels]``. Where A has more positions than B, A is max-pooled to B's.

    Args:
      student: two arrays ``[B, H, W, C1]``, ``[B, h, w, C2]`` (or ``[B, L, C]``, ``[B, D]``: one position).
      teacher: two, with the same C1 and C2; adapters see to that where widths differ.

    Returns:
      float32 scalar.

    Raises:
      ValueError: unless there are two layers of each with the same channels, and positions that divide.

    Example:
      >>> a, b = jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
      >>> fsp((a, b), (a, 2 * b)).item()  # G: [3, 6] and [6, 12]
      45.0

    Source: Yim et al. 2017, "A gift from knowledge distillation", eq. (1) and (2), with their max pooling.
    """
    if len(student) != 2 or len(teacher) != 2:
        raise ValueError(f"fsp: needs two layers' features of each; got {len(student)} and {len(teacher)}.")
    s, t = (_flow(wide(first), wide(second)) for first, second in (student, teacher))
    check_same("fsp", s, t, "flow matrices [B, C1, C2]")
    return jnp.mean(jnp.sum(jnp.square(s - t), axis=(1, 2)))


def _flow(a: Array, b: Array) -> Array:
    check_rank("fsp", 2, "[B, D] or [B, ..., C]", a, b)
    if a.ndim != b.ndim or a.shape[0] != b.shape[0]:
        raise ValueError(f"fsp: both layers must be of the same batch and rank; got shapes {a.shape} and {b.shape}.")
    a = pool(a, b.shape[1:-1], "max")
    a, b = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (a, b))
    return jnp.einsum("bpi,bpj->bij", a, b, precision="highest") / a.shape[1]


def pool(features: Array, sizes: Sequence[int], how: str = "mean") -> Array:
    """Pool the axes between batch and channels to the given sizes, each a divisor of what is there.

    Args:
      features: ``[B, ..., C]``.
      sizes: of the axes between.
      how: "mean" or "max".

    Raises:
      ValueError: where a size does not divide.

    Example:
      >>> pool(jnp.arange(4.0).reshape(1, 4, 1), [2])[0, :, 0].tolist()
      [0.5, 2.5]
    """
    old, new = features.shape[1:-1], tuple(sizes)
    if len(old) != len(new) or any(n < 1 or o % n for o, n in zip(old, new)):
        raise ValueError(
            f"features of positions {old} cannot be pooled to {new}: each must be a whole multiple. Tap layers whose sizes "
            "divide."
        )
    split = [part for o, n in zip(old, new) for part in (n, o // n)]
    windows = features.reshape(features.shape[0], *split, features.shape[-1])
    axes = tuple(range(2, 2 + 2 * len(new), 2))
    return jnp.mean(windows, axis=axes) if how == "mean" else jnp.max(windows, axis=axes)


@checked
def vid(mean: Array, raw_variance: Array, teacher: Array, *, floor: float = 1e-5) -> Array:
    """Return the negative log-likelihood of the teacher's features under a Gaussian predicted from the student's.

    ``mean(log(v_c) + (t - m)**2 / v_c) / 2`` with one learned variance a channel, ``v = softplus(raw_variance) + floor``. A
    bound on the information that the student's features hold about the teacher's; it may be negative.

    Args:
      mean: m ``[B, ..., C]``, what the mean net makes of the student's features (adapter `Gaussian`).
      raw_variance: ``[C]``.
      teacher: t, the same shape as `mean`.
      floor: least variance, more than 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for shapes that differ, or a floor that is not positive.

    Example:
      >>> raw = jnp.log(jnp.expm1(jnp.ones(1)))  # variance 1
      >>> round(vid(jnp.zeros((1, 1)), raw, jnp.full((1, 1), 2.0)).item(), 3)
      2.0

    Source: Ahn et al. 2019, "Variational information distillation for knowledge transfer", eq. (5) and (6). Deviations: mean
    instead of sum, the constant left out, a linear mean net.
    """
    if not floor > 0:
        raise ValueError(f"vid: floor must be positive, or a variance can vanish; got {floor}.")
    check_same("vid", mean, teacher)
    if jnp.shape(raw_variance) != jnp.shape(teacher)[-1:]:
        raise ValueError(f"vid: raw_variance must be {jnp.shape(teacher)[-1:]}; got {jnp.shape(raw_variance)}.")
    variance = jax.nn.softplus(wide(raw_variance)) + floor
    variance = jnp.broadcast_to(variance, jnp.shape(teacher))
    return jnp.mean(jnp.log(variance) + jnp.square(wide(teacher) - wide(mean)) / variance) / 2
