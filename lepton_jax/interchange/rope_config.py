"""What a published decoder's config says of rotary positions."""

import math
from collections.abc import Mapping
from typing import Any

from lepton_jax.core.errors import Problems
from lepton_jax.core.foreign_text import shown
from lepton_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope, magnitude_of

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_THETA, _LENGTH = 10_000.0, 2048


def rope_of(config: Mapping[str, Any], problems: Problems) -> Rope:
    """Return the rotary positions of a config, from "rope_parameters", or from "rope_theta" and "rope_scaling".

    What is unknown, missing or out of range is appended to the problems.

    Example:
      >>> rope_of({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2}}, Problems())
      LinearRope(theta=1000000.0, factor=2.0)
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        problems.append(f"rope_parameters: must be one object, the same for every layer; got {shown(given, 80)}")
        return Rope()
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _KINDS:
        problems.append(f"rope_type: must be one of {', '.join(_KINDS)}; got {shown(kind, 40)}")
        return Rope()
    part = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (None, 1):
        problems.append(f"partial_rotary_factor: only whole heads are rotated; got {shown(part, 40)}")
    values = _Values(given, config, problems)
    theta = values.positive("rope_theta", _THETA)
    if kind == "default":
        return Rope(theta=theta)
    longest = values.positive("max_position_embeddings", _LENGTH)
    if kind == "dynamic":
        return DynamicRope(theta=theta, factor=values.positive("factor"), original_length=int(longest))
    if kind == "linear":
        return LinearRope(theta=theta, factor=values.positive("factor"))
    outside = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
    inside = values.positive("original_max_position_embeddings", longest)
    first = int(_Values(outside, {}, problems).positive("original_max_position_embeddings", inside))
    return (_llama3 if kind == "llama3" else _yarn)(values, theta, max(first, 1), longest)


class _Values:
    """Positive numbers of an object, or of the config around it; what is wrong goes to the problems, and 1 in its place."""

    def __init__(self, given: Mapping[str, Any], config: Mapping[str, Any], problems: Problems) -> None:
        self.given, self.config, self.problems = given, config, problems

    def positive(self, name: str, default: float | None = None) -> float:
        found = (where[name] for where in (self.given, self.config) if where.get(name) is not None)
        value = next(found, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.problems.append(f"{name}: must be a positive number; got {shown(value, 40)}")
            return 1.0
        return float(value)

    def maybe(self, name: str, default: float | None = None) -> float | None:
        """A number that may be 0 or missing, which asks for the default."""
        return self.positive(name) if self.given.get(name) else default


def _llama3(values: _Values, theta: float, first: int, longest: float) -> Rope:
    factor, low, high = (values.positive(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        values.problems.append(f"low_freq_factor: must be less than high_freq_factor; got {low} and {high}")
        return Rope()
    return Llama3Rope(theta=theta, factor=factor, low=low, high=high, original_length=first)


def _yarn(values: _Values, theta: float, first: int, longest: float) -> Rope:
    factor = values.positive("factor", longest / first)
    scale, weight, weight_of_all = (values.maybe(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if scale is None and weight and weight_of_all:
        scale = magnitude_of(factor, weight) / magnitude_of(factor, weight_of_all)
    whole = values.given.get("truncate", True)
    if not isinstance(whole, bool) or theta <= 1:
        values.problems.append(f"truncate: must be true or false, and rope_theta above 1; got {shown(whole, 40)} and {theta}")
        return Rope()
    fast, slow = values.maybe("beta_fast", 32.0) or 32.0, values.maybe("beta_slow", 1.0) or 1.0
    return YarnRope(theta=theta, factor=factor, original_length=first, fast=fast, slow=slow, whole=whole, scale=scale)
