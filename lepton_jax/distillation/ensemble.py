"""Ensembles of teachers."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_same, check_temperature, wide
from lepton_jax.distillation.taps import Outputs
from lepton_jax.distillation.teacher import Teach

Average = Literal["probabilities", "logits"]


@checked
def ensemble_logits(logits: Sequence[Array], *, average: Average = "probabilities", temperature: float = 1.0) -> Array:
    """Return the logits of an ensemble.

    "probabilities": ``T * log(mean_m softmax(z_m / T))``, whose softmax at T is the mean of the members' softened
    probabilities; "logits": ``mean_m z_m``.

    Args:
      logits: one array ``[..., C]`` a member, of one shape; computed in float32 at least.
      average: what is averaged.
      temperature: T > 0, that of the loss the logits are for; without effect on "logits".

    Returns:
      float32 ``[..., C]``.

    Raises:
      ValueError: for an empty ensemble, shapes that differ, an unknown average, or a temperature that is not positive.

    Example:
      >>> members = [jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.4, 0.6]))]
      >>> [round(float(p), 4) for p in jax.nn.softmax(ensemble_logits(members))]
      [0.6, 0.4]

    Source: Hinton, Vinyals, Dean 2015, section 3 (arithmetic or geometric mean of the members' predictions).
    """
    _check(logits, average, temperature)
    for number, one in enumerate(logits):
        check_same(f"ensemble: members 0 and {number}", logits[0], one)
    stacked = jnp.stack([wide(one) for one in logits])
    if average == "logits":
        return jnp.mean(stacked, axis=0)
    logs = jax.nn.log_softmax(stacked / temperature)
    return temperature * (jax.nn.logsumexp(logs, axis=0) - jnp.log(len(logits)))


@checked
def ensemble(members: Sequence[Teach], *, average: Average = "probabilities", temperature: float = 1.0) -> Teach:
    """Return several teachers as one.

    Args:
      members: from `teach`, one or more. Features are not handed out: they have no mean.
      average: see `ensemble_logits`.
      temperature: see `ensemble_logits`.

    Returns:
      ``images -> Outputs``.

    Raises:
      ValueError: for an empty ensemble, an unknown average, or a temperature that is not positive.

    Example:
      >>> ones = lambda images: Outputs(jnp.ones((len(images), 2)), {})
      >>> ensemble([ones, ones], average="logits")(jnp.zeros((1, 3))).logits.tolist()
      [[1.0, 1.0]]
    """
    members = tuple(members)
    _check(members, average, temperature)

    def answer(images: Any) -> Outputs:
        logits = [member(images).logits for member in members]
        return Outputs(ensemble_logits(logits, average=average, temperature=temperature), {})

    return answer


def _check(members: Sequence[Any], average: Average, temperature: float) -> None:
    check_option("ensemble: average", average, Average)
    check_temperature("ensemble", temperature)
    if not len(members):
        raise ValueError("ensemble: there is no teacher to average; give one or more.")
