"""Short names that stand for settings: one table for each kind of setting, beside that kind."""

from collections.abc import Mapping
from typing import Any

from lepton_jax.core.errors import one_line


def preset(name: str, given: Any, table: Mapping[str, Any]) -> Any:
    """Return what a short name stands for; what is no text is returned as it is.

    Args:
      name: of the setting, for the error.
      given: a short name, or the setting itself.
      table: what each name stands for.

    Raises:
      ValueError: for a name that is not in the table; lists those that are.

    Example:
      >>> preset("cast: compute_dtype", "bf16", {"bf16": "bfloat16"}), preset("cast: compute_dtype", 3, {})
      ('bfloat16', 3)
      >>> preset("prune: structure", "2:5", {"2:4": ..., "1:2": ...})
      Traceback (most recent call last):
      ...
      ValueError: prune: structure must be one of '2:4', '1:2', or the setting itself; got '2:5'.
    """
    if not isinstance(given, str):
        return given
    if given not in table:
        listed = ", ".join(map(repr, table))
        raise ValueError(f"{name} must be one of {listed}, or the setting itself; got {one_line(repr(given), 60)}.")
    return table[given]
