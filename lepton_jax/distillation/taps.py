"""Taps: a model's outputs beside the values that patterns choose from its graph; the model is not edited."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.capture import capture, places
from lepton_jax.graph.trace import trace


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Attributes:
      logits: ``[B, ..., C]``.
      features: the tapped values by pattern, in the order in which the model computes them.
    """

    logits: Any
    features: Mapping[str, tuple[Any, ...]]


@checked
def tapped(apply: Callable[..., PyTree], taps: tuple[str, ...], who: str = "model") -> Callable[..., tuple[PyTree, PyTree]]:
    """Return a function that gives, beside the outputs of `apply`, the values that each pattern chooses.

    Patterns name modules (``"Dense_0"``, ``"*/Conv_*"``) or operations (``"Dense_0/add"``, ``"tanh"``; ReLUs are
    ``"custom_jvp_call"``), as for `lepton_jax.graph.capture`. Values from inside a scan have its axis first; tap what comes
    after it instead.

    Args:
      apply: any pure function ``apply(variables, *inputs, **static)``.
      taps: glob patterns; none gives no features.
      who: whose taps they are, for messages.

    Returns:
      function of the same arguments that returns ``(outputs, {pattern: (value, ...)})``.

    Raises:
      ValueError: when called, if a pattern matches nothing; the message lists what there is.

    Example:
      >>> import jax.numpy as jnp
      >>> run = tapped(lambda v, x: jnp.sum(jnp.tanh(x * v)), ("tanh",))
      >>> run(2.0, jnp.zeros(3))[1]["tanh"][0].tolist()
      [0.0, 0.0, 0.0]
    """

    def run(variables: PyTree, *inputs: Any, **static: Any) -> tuple[PyTree, PyTree]:
        if not taps:
            return apply(variables, *inputs, **static), {}
        traced = trace(apply, variables, *inputs, **static)
        try:
            names = {tap: {name for found in places(traced, tap).values() for name, _ in found} for tap in taps}
        except ValueError as error:
            raise ValueError(f"{who} tap: {error}") from error
        outputs, values = capture(apply, tuple(taps))(variables, *inputs, **static)
        features = {tap: tuple(value for name, value in values.items() if name in names[tap]) for tap in taps}
        return outputs, features

    return run
