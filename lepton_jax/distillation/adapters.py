"""Adapters: what stands between two taps and a loss, with learned parameters of their own where widths differ."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.distillation.features import pool
from lepton_jax.distillation.numerics import unit, wide


class Adapter(Protocol):
    """Makes the arguments of a loss out of a student's and a teacher's features.

    ``init`` makes the trainable parameters for two shapes (a dict, empty if nothing is learned); the call is pure.
    """

    def init(self, key: Array, student: Any, teacher: Any) -> dict[str, PyTree]: ...

    def __call__(self, params: dict[str, PyTree], student: Array, teacher: Array) -> tuple[Array, ...]: ...


@checked
@dataclass(frozen=True, kw_only=True)
class Plain:
    """Learn nothing: features as they are, the larger of two maps pooled by means to the size of the smaller.

    Example:
      >>> adapter = Plain()
      >>> student, teacher = adapter({}, jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 5)))
      >>> student.shape, teacher.shape
      ((2, 4, 4, 3), (2, 4, 4, 5))
    """

    def init(self, key: Array, student: Any, teacher: Any) -> dict[str, PyTree]:
        """Return no parameters."""
        del key, student, teacher
        return {}

    def __call__(self, params: dict[str, PyTree], student: Array, teacher: Array) -> tuple[Array, ...]:
        """Return ``(student, teacher)`` of the same positions."""
        del params
        return fit_positions(student, teacher)


@checked
@dataclass(frozen=True, kw_only=True)
class Linear:
    """Map the student's channels to the teacher's width by a learned affine map: dense, or 1 x 1 convolution.

    Example:
      >>> adapter = Linear()
      >>> student, teacher = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 8, 8, 5))
      >>> params = adapter.init(jax.random.key(0), student, teacher)
      >>> params["kernel"].shape, adapter(params, student, teacher)[0].shape
      ((3, 5), (2, 8, 8, 5))

    Source: Romero et al. 2015, "FitNets", section 2.2 (their regressor).
    """

    def init(self, key: Array, student: Any, teacher: Any) -> dict[str, PyTree]:
        """Return a kernel ``[C_student, C_teacher]`` (LeCun normal) and a bias."""
        return _affine(key, student.shape[-1], teacher.shape[-1])

    def __call__(self, params: dict[str, PyTree], student: Array, teacher: Array) -> tuple[Array, ...]:
        """Return ``(adapted student, teacher)`` of the same positions."""
        student, teacher = fit_positions(student, teacher)
        return _apply(params, student), teacher


@checked
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Predict the teacher's features by a learned affine map and one learned variance a channel, for `vid`.

    Args:
      variance: what each channel's variance begins with, more than 0.

    Raises:
      ValueError: if it is not positive.

    Example:
      >>> params = Gaussian().init(jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 5)))
      >>> {name: leaf.shape for name, leaf in params.items()}
      {'bias': (5,), 'kernel': (3, 5), 'raw_variance': (5,)}

    Source: Ahn et al. 2019; the authors' code begins with 5.
    """

    variance: float = 5.0

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise ValueError(f"Gaussian: variance must be positive; got {self.variance}.")

    def init(self, key: Array, student: Any, teacher: Any) -> dict[str, PyTree]:
        """Return the map's kernel and bias, and the inverse softplus of the variances."""
        raw = jnp.log(jnp.expm1(jnp.full(teacher.shape[-1], self.variance, jnp.float32)))
        return {**_affine(key, student.shape[-1], teacher.shape[-1]), "raw_variance": raw}

    def __call__(self, params: dict[str, PyTree], student: Array, teacher: Array) -> tuple[Array, ...]:
        """Return ``(mean, raw_variance, teacher)``, what `vid` takes."""
        student, teacher = fit_positions(student, teacher)
        return _apply(params, student), params["raw_variance"], teacher


@checked
@dataclass(frozen=True, kw_only=True)
class Projections:
    """Project both sides, flattened, to unit vectors of one width by learned affine maps, for `crd`.

    Args:
      width: of the embeddings, 1 or more.

    Raises:
      ValueError: if it is less than 1.

    Example:
      >>> adapter = Projections(width=4)
      >>> student, teacher = jnp.ones((2, 3)), jnp.ones((2, 5))
      >>> [x.shape for x in adapter(adapter.init(jax.random.key(0), student, teacher), student, teacher)]
      [(2, 4), (2, 4)]

    Source: Tian, Krishnan, Isola 2020 (their projections to 128 dimensions).
    """

    width: int = 128

    def __post_init__(self) -> None:
        check_whole("Projections: width", self.width, 1)

    def init(self, key: Array, student: Any, teacher: Any) -> dict[str, PyTree]:
        """Return a kernel and a bias for each side."""
        sides, keys = {"student": student, "teacher": teacher}, jax.random.split(key)
        sizes = {name: x.size // x.shape[0] for name, x in sides.items()}
        return {name: _affine(k, size, self.width) for k, (name, size) in zip(keys, sizes.items())}

    def __call__(self, params: dict[str, PyTree], student: Array, teacher: Array) -> tuple[Array, ...]:
        """Return two arrays ``[B, width]``."""
        sides = {"student": student, "teacher": teacher}
        return tuple(unit(_apply(params[name], x.reshape(x.shape[0], -1))) for name, x in sides.items())


def fit_positions(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Pool both by means, axis by axis, to the smaller size of the two.

    Args:
      student: ``[B, ..., C]``.
      teacher: of the same rank.

    Raises:
      ValueError: for ranks or batches that differ, or sizes that don't divide.

    Example:
      >>> [x.shape for x in fit_positions(jnp.ones((2, 8, 3)), jnp.ones((2, 4, 5)))]
      [(2, 4, 3), (2, 4, 5)]
    """
    if student.ndim != teacher.ndim or student.ndim < 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student and teacher features must be of one batch and one rank, [B, ..., C]; got {student.shape} and "
            f"{teacher.shape}. Tap layers of the same kind."
        )
    sizes = [min(s, t) for s, t in zip(student.shape[1:-1], teacher.shape[1:-1])]
    return _pooled(student, sizes), _pooled(teacher, sizes)


def _pooled(features: Array, sizes: list[int]) -> Array:
    return features if list(features.shape[1:-1]) == sizes else pool(wide(features), sizes)


def _affine(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs), jnp.float32)
    return {"bias": jnp.zeros(outputs), "kernel": kernel}


def _apply(params: dict[str, PyTree], features: Array) -> Array:
    outputs = wide(features) @ params["kernel"]
    return outputs + jnp.broadcast_to(params["bias"], outputs.shape)
