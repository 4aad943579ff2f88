"""What a rule of lowering is: operations that it can do, those for which that pays, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.site import Site


@checked
@dataclass(frozen=True, kw_only=True)
class Rule:
    """Another form of some operations: the same function, up to the order of its sums.

    Args:
      name: of the form.
      about: why XLA's own form is slow on CPU, in a few words.
      gain: how many times faster it was measured, as words.
      can: whether it can do an operation.
      pays: whether it is expected to be faster for one that it can do; decided by shapes alone.
      form: computes the operation from its operands.

    Example:
      >>> from lepton_jax.graph.lowering import DEFAULT
      >>> [rule.name for rule in DEFAULT][:2]
      ['one position', 'small image']
    """

    name: str
    about: str
    gain: str
    can: Callable[[Site], bool]
    pays: Callable[[Site], bool]
    form: Callable[..., Array]
