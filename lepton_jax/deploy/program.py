"""Programs of `.lepton` files as operations of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def expanded(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function in which programs of files are operations as others."""
    return apply
