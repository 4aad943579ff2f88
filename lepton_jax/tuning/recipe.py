"""A choice for every layer, that anyone can read, and the transform that it is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.files import ArtifactError
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.tables import table
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.channels import Plan
from lepton_jax.tuning.layer import Layer, transform_of
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.table import choice_of, layer_of

_VERSION = 1
_FOUND = ("measured", "file_bytes", "latency")
"""What is known of some recipes only."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """What is done to every layer; printed, a table.

    Args:
      layers: by path.
      choices: by path, settled: ranks are whole numbers.
      loss: that the table predicts: the sum over layers. Layers spoil each other's work: what is measured is often more.
      bytes: of all tensors in a file: of the file itself where the table had the variables, else by quick coders.
      macs: multiply-accumulates of one call.
      channels: the plan of those that go; None where all stay. Layers have the shapes that it leaves.
      measured: the loss that was measured, by `refine`; None where it was not.
      file_bytes: of the saved file, where the budget limits them.
      latency: seconds of a call by the engine, where the budget limits them.
      gap: by how much of itself `loss` (or the size, where that was made least) may be above the best there is.

    Example:
      >>> from lepton_jax.core.weight_axes import WeightAxes
      >>> layer = Layer(shape=(2, 2), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=4.0)
      >>> recipe = Recipe(layers={"w": layer}, choices={"w": Choice(bits=4)}, loss=0.01, bytes=9, macs=4.0, gap=0.0)
      >>> print(recipe)
      layer  shape  weights  choice
      w      2x2          4  4 bits
      9 bytes of tensors, 4 multiply-accumulates, predicted loss 0.01
      >>> Recipe.from_json(recipe.to_json()) == recipe
      True
    """

    layers: Mapping[Path, Layer]
    choices: Mapping[Path, Choice]
    loss: float
    bytes: int
    macs: float
    gap: float
    channels: Plan | None = None
    measured: float | None = None
    file_bytes: int | None = None
    latency: float | None = None

    def transform(self) -> Transform:
        """Return the recipe as a chain of `low_rank`, `prune` and `fake_quant`, to look through, train and pack.

        Where channels go, it is for the variables that `shrink` leaves.
        """
        return transform_of(self.layers, self.choices)

    def shrink(self, tree: PyTree) -> PyTree:
        """Return variables, or any tree of their paths, without the channels that go; see `pruning.channels.Plan.shrink`."""
        return tree if self.channels is None else self.channels.shrink(tree)

    def rewrite(self, apply: Apply) -> Apply:
        """Return the function of what `shrink` leaves; see `pruning.channels.Plan.rewrite`."""
        return apply if self.channels is None else self.channels.rewrite(apply)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._facts == other._facts

    @property
    def _facts(self) -> tuple[Any, ...]:
        plain = [getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "channels"]
        return (*plain, None if self.channels is None else self.channels.to_json())

    @property
    def _gone(self) -> list[str]:
        if self.channels is None:
            return []
        return [f"{g.name}: {len(g.removed)} of {g.size} channels go" for g in self.channels.groups if g.removed]

    @property
    def lines(self) -> list[str]:
        """What is done to each layer and group of channels that is changed, a line each."""
        return [*self._gone, *(f"{path}: {choice}" for path, choice in self.choices.items() if choice != Choice())]

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("layer", "shape", "weights", "choice")]
        for path, layer in self.layers.items():
            rows.append((path, "x".join(map(str, layer.shape)), f"{math.prod(layer.shape):,}", self.choices[path]))
        gap = f" (at most {100 * self.gap:.2g} % from the best)" if self.gap > 1e-6 else ""
        facts = f"{self.bytes:,} bytes of tensors, {self.macs:,.0f} multiply-accumulates, predicted loss {self.loss:.3g}{gap}"
        facts += "" if self.measured is None else f", measured {self.measured:.3g}"
        facts += "" if self.file_bytes is None else f", {self.file_bytes:,} bytes of file"
        facts += "" if self.latency is None else f", {1e3 * self.latency:.3g} ms"
        return "\n".join([table(rows, left=(0, 1, 3)), *self._gone, facts])

    def to_json(self) -> str:
        """Return all of it as text."""
        each = {
            path: {"layer": dataclasses.asdict(layer), "choice": dataclasses.asdict(self.choices[path])}
            for path, layer in self.layers.items()
        }
        facts: dict[str, Any] = {
            "version": _VERSION,
            "loss": self.loss,
            "bytes": self.bytes,
            "macs": self.macs,
            "gap": self.gap,
        }
        facts |= {name: getattr(self, name) for name in _FOUND}
        facts["channels"] = None if self.channels is None else json.loads(self.channels.to_json())
        return json.dumps({**facts, "layers": each}, indent=1)

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Undo `to_json`.

        Raises:
          ValueError: for what is no recipe.
        """
        try:
            read = parse_json(text, "the text")
            if read["version"] != _VERSION:
                raise ValueError(f"version {read['version']}")
            layers = {path: layer_of(found["layer"]) for path, found in read["layers"].items()}
            choices = {path: choice_of(found["choice"]) for path, found in read["layers"].items()}
            facts: dict[str, Any] = {name: float(read[name]) for name in ("loss", "macs", "gap")}
            kinds = {name: int if name == "file_bytes" else float for name in _FOUND}
            facts |= {name: kind(read[name]) for name, kind in kinds.items() if read.get(name) is not None}
            if (channels := read.get("channels")) is not None:
                facts["channels"] = Plan.from_json(json.dumps(channels))
            return Recipe(layers=layers, choices=choices, bytes=int(read["bytes"]), **facts)
        except (KeyError, TypeError, AttributeError, ValueError, ArtifactError) as error:
            raise ValueError(f"Recipe.from_json: this is no recipe ({error}); make one by recipe.to_json().") from error
