"""What a rule is given beside values: the node, and what it may ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.limits import most_bytes, most_turns
from lepton_jax.interchange.onnx.host import is_dim
from lepton_jax.interchange.onnx.parts import Graph, Node

_DEEP = 6
_VALUES = 64
"""How many of the largest values a graph may make in all."""


class TooMuchError(ArtifactError):
    """A graph asks for more than its bytes may."""


class Budget:
    """What a graph may still make while it is evaluated: bytes of a value, bytes of all, and nodes, loops counted as often.

    Args:
      stored: bytes of the file, and of the inputs.

    Example:
      >>> Budget(100).room((1 << 34,), 4)
      Traceback (most recent call last):
      ...
      lepton_jax.interchange.onnx.site.TooMuchError: a value of shape (17179869184,) takes 68719476736 bytes, more than ...
    """

    def __init__(self, stored: int) -> None:
        self.stored = stored
        self.most, self.turns = most_bytes(stored), most_turns(stored)
        self.left = _VALUES * self.most
        self.deep = 0

    def room(self, shape: Sequence[Any], itemsize: int) -> None:
        """Ask for a value, before it is made.

        Raises:
          ArtifactError: if it is too large, or all together are.
        """
        known = [1 if is_dim(one) else int(one) for one in shape]
        count = itemsize * math.prod(known)
        self.left -= max(count, 0)
        if min(known, default=0) < 0 or count > self.most or self.left < 0:
            what = f"a value of shape {tuple(map(str, shape))}".replace("'", "")
            if min(known, default=0) < 0:
                raise ArtifactError(f"{what}: lengths are 0 or more")
            limit = f"more than the {self.most} that" if count > self.most else f"and all values more than {_VALUES} times what"
            raise TooMuchError(f"{what} takes {count} bytes, {limit} {self.stored} bytes of file and inputs may ask for")

    @contextlib.contextmanager
    def both(self) -> Iterator[None]:
        """Ask to evaluate both branches of a graph: within one another they double the work.

        Raises:
          ArtifactError: if it is so in too many already.
        """
        if self.deep >= _DEEP:
            raise TooMuchError(f"more nodes than may be: more than {_DEEP} branches within one another depend on inputs")
        self.deep += 1
        try:
            yield
        finally:
            self.deep -= 1

    def turn(self) -> None:
        """Ask to evaluate a node.

        Raises:
          ArtifactError: if there were too many.
        """
        self.turns -= 1
        if self.turns < 0:
            raise TooMuchError(f"more nodes, loops unrolled, than {self.stored} bytes of file and inputs may ask for")


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """Where a rule is applied.

    Args:
      node: the node.
      budget: what may be made.
      evaluate: the results of a graph within it, given values by name.
    """

    node: Node
    budget: Budget
    evaluate: Callable[[Graph, Mapping[str, Any]], tuple[Any, ...]]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.get(name, default)

    @property
    def version(self) -> int:
        """Of the operator set."""
        return self.node.version

    @property
    def outs(self) -> int:
        """How many results the node has."""
        return len(self.node.outputs)

    def wants(self, index: int) -> bool:
        """Whether a result has a name, and is so of use to anyone."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def room(self, shape: Sequence[Any], dtype: Any) -> None:
        """Ask for a value; see `Budget.room`."""
        kind = np.dtype(dtype)
        self.budget.room(shape, kind.itemsize)


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """How an operator is evaluated.

    Args:
      function: ``function(site, *values)``; a value that is left out is None, and what it returns is a value or a tuple.
      host: the inputs that have to be known while tracing: shapes, axes, counts.
      both: whether it computes with numpy arrays too, so that what is known stays known.
      codes: how it takes `Codes`: as integers; moved, since it only moves elements, as numbers that come out as codes again; or
        kept, as they are.
    """

    function: Callable[..., Any]
    host: tuple[int, ...] = ()
    both: bool = False
    codes: Literal["integers", "moved", "kept"] = "integers"


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Integers of few bits as floating numbers, which have a derivative: that of the number before it was rounded.

    Args:
      value: float32, whole numbers.
      dtype: of the integers.
    """

    value: Any
    dtype: np.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.value.shape)

    def integers(self) -> Any:
        """The integers, without a derivative."""
        return self.value.astype(jnp.int32).astype(self.dtype)

    def tree_flatten(self) -> tuple[tuple[Any], np.dtype]:
        return (self.value,), self.dtype

    @classmethod
    def tree_unflatten(cls, dtype: np.dtype, children: tuple[Any]) -> Codes:
        return cls(children[0], dtype)
