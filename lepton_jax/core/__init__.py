"""What every package stands on: paths, errors, schedules, and the transform."""

from lepton_jax.core import errors, packed, paths, schedules, transform, typing

__all__ = ["errors", "packed", "paths", "schedules", "transform", "typing"]
