"""The function of an imported graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.packed import unpack
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.onnx.evaluate import evaluate
from lepton_jax.interchange.onnx.host import is_host, on_device
from lepton_jax.interchange.onnx.parts import Graph
from lepton_jax.interchange.onnx.site import Budget, Codes
from lepton_jax.interchange.onnx.weights import Record


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """A graph of a file as a pure function ``(variables, *inputs)``.

    Args:
      graph: what it computes.
      leaves: its variables as the file had them, by path: their names there, and how their axes were reordered.
      proto: the file itself, without the variables' numbers, to be written again.
      stored: bytes of the file.
      version: of the operator set that its graph is in.
      name: of the file.
    """

    graph: Graph
    leaves: Mapping[str, Record]
    proto: Any
    stored: int
    version: int
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "__qualname__", self.name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(port.name for port in self.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(port.name for port in self.graph.outputs)

    @property
    def axes(self) -> tuple[dict[int, str], ...]:
        """The axes whose lengths the file leaves open, and their names: ``model.save(path, axes=model.apply.axes)``."""
        names: dict[Any, str] = {}
        found = []
        for number, port in enumerate(self.graph.inputs):
            dims = enumerate(port.dims or ())
            keys = {axis: n if isinstance(n, str) else (number, axis) for axis, n in dims if not isinstance(n, int)}
            found.append({axis: names.setdefault(key, _axis_name(key, len(names))) for axis, key in keys.items()})
        return tuple(found)

    def __call__(self, variables: PyTree, *inputs: Any) -> Any:
        """Return the output, or a tuple of several.

        Raises:
          TypeError: for another number of inputs.
          ArtifactError: for inputs that a node cannot take; names it.
        """
        if len(inputs) != len(self.graph.inputs):
            takes = ", ".join(self.inputs)
            raise TypeError(f"{self.name} takes {len(self.graph.inputs)} inputs ({takes}); got {len(inputs)}.")
        given = {port.name: _as_declared(value, port.dtype) for port, value in zip(self.graph.inputs, inputs)}
        leaves = {path: jnp.asarray(leaf) for path, leaf in paths.flatten(unpack(variables)).items()}
        size = sum(int(np.prod([n for n in x.shape if isinstance(n, int)])) * x.dtype.itemsize for x in given.values())
        with jax.numpy_rank_promotion("allow"):
            outs = evaluate(self.graph, leaves, given, Budget(self.stored + size))
        results = tuple(_as_output(one) for one in outs)
        return results[0] if len(results) == 1 else results


def _axis_name(key: Any, number: int) -> str:
    return key if isinstance(key, str) and key.isidentifier() and key.isascii() else f"n{number}"


def _as_declared(value: Any, dtype: np.dtype | None) -> Any:
    array = jnp.asarray(value)
    return array if dtype is None else array.astype(jax.dtypes.canonicalize_dtype(dtype))


def _as_output(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_output, value))
    return value.integers() if isinstance(value, Codes) else on_device(value) if is_host(value) else value
