"""What every choice costs and spoils, layer by layer."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lepton_jax.core.arguments import checked
from lepton_jax.core.files import ArtifactError, write_atomic
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.pruning.channels import Plan
from lepton_jax.tuning.deployed import Deployed
from lepton_jax.tuning.groups import Groups, Removal
from lepton_jax.tuning.layer import Layer
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.packing import Packing

_VERSION = 1
_RESTS: Mapping[str, type] = {"rest_bytes": int, "rest_macs": float}


class Cell(NamedTuple):
    """What one choice does to one layer, all others as they are.

    Attributes:
      loss: how far the outputs move, see `measure`.
      bytes: of the layer in a file, by quick coders; the file's take up to a few percent less.
      macs: multiply-accumulates with the layer in one call.
      latency: seconds of processor time of the layer alone by an engine; None where `measure` was given none.
    """

    loss: float
    bytes: int
    macs: float
    latency: float | None = None


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Losses and costs by layer and choice, from `measure`; printed, the losses.

    Args:
      layers: by path.
      cells: by path, of each choice that fits the layer.
      rest_bytes: of all other leaves in a file.
      rest_macs: of what no layer does, in one call.
      divergence: what the losses are, see `measure`.
      groups: of channels, where `measure` was given `Channels`.
      rest_latency: seconds of one call that are no layer's, by the engine; None where `measure` was given none.
      about: a checksum of what it was measured of, for files that are gone on with.
      variables: of the model; None for a table that was read.
      packing: packs them, each layer's choice once; by default made of them.
      deployed: writes and runs the model, for budgets of files and time; None for a table that was read.

    Example:
      >>> layer = Layer(shape=(2, 2), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=4.0)
      >>> cells = {"w": {Choice(): Cell(0.0, 16, 4.0), Choice(bits=4): Cell(0.01, 8, 4.0)}}
      >>> found = Table(layers={"w": layer}, cells=cells, rest_bytes=0, rest_macs=0.0, divergence="kl")
      >>> print(found)
      layer  shape  as it is  4 bits
      w      2x2           0    0.01
      >>> Table.from_json(found.to_json()) == found
      True
    """

    layers: Mapping[Path, Layer]
    cells: Mapping[Path, Mapping[Choice, Cell]]
    rest_bytes: int
    rest_macs: float
    divergence: str
    groups: Groups | None = None
    rest_latency: float | None = None
    about: str = dataclasses.field(default="", repr=False, compare=False)
    variables: PyTree = dataclasses.field(default=None, repr=False, compare=False)
    packing: Packing | None = dataclasses.field(default=None, repr=False, compare=False)
    deployed: Deployed | None = dataclasses.field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("layer", "shape", *map(str, self.choices))]
        for path, cells in self.cells.items():
            losses = [f"{cells[choice].loss:.3g}" if choice in cells else "-" for choice in self.choices]
            rows.append((path, "x".join(map(str, self.layers[path].shape)), *losses))
        said = table(rows, left=(0, 1))
        if self.groups is None:
            return said
        fractions = self._fractions
        rows = [("channels", "of", *(f"{100 * f:g} % gone" for f in fractions))]
        for name, removals in self.groups.cells.items():
            losses = [f"{removals[f].loss:.3g}" if f in removals else "-" for f in fractions]
            rows.append((name, self.groups.named[name].size, *losses))
        return f"{said}\n{table(rows, left=(0,))}"

    @property
    def _fractions(self) -> list[float]:
        return sorted({f for cells in self.groups.cells.values() for f in cells}) if self.groups else []

    @property
    def modelled(self) -> tuple[str, ...]:
        """The costs that the table foretells, by their names in `Budget`."""
        return ("bytes", "macs", *(("latency",) if self.rest_latency is not None else ()))

    def __post_init__(self) -> None:
        if self.packing is None and self.variables is not None:
            object.__setattr__(self, "packing", Packing(self.layers, self.variables))

    @property
    def choices(self) -> list[Choice]:
        """All that some layer has, in the order in which they were asked for."""
        return list(dict.fromkeys(choice for cells in self.cells.values() for choice in cells))

    def to_json(self) -> str:
        """Return all but the variables as text."""
        layers = {
            path: {
                "layer": dataclasses.asdict(layer),
                "cells": [[dataclasses.asdict(choice), *cell] for choice, cell in self.cells[path].items()],
            }
            for path, layer in self.layers.items()
        }
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("divergence", *_RESTS, "rest_latency", "about")}
        groups = None
        if self.groups is not None:
            cells = {name: [[f, *cell] for f, cell in some.items()] for name, some in self.groups.cells.items()}
            groups = {"plan": json.loads(self.groups.plan.to_json()), "cells": cells}
        return json.dumps({"version": _VERSION, **facts, "layers": layers, "groups": groups}, indent=1)

    @staticmethod
    def from_json(text: str) -> Table:
        """Undo `to_json`.

        Raises:
          ValueError: for what is no table.
        """
        try:
            read = parse_json(text, "the text")
            if read["version"] != _VERSION:
                raise ValueError(f"version {read['version']}")
            layers = {path: layer_of(found["layer"]) for path, found in read["layers"].items()}
            cells = {
                path: {choice_of(choice): _cell(*costs) for choice, *costs in found["cells"]}
                for path, found in read["layers"].items()
            }
            facts: dict[str, Any] = {name: kind(read[name]) for name, kind in _RESTS.items()}
            facts |= {"groups": _groups(read.get("groups")), "about": str(read.get("about", ""))}
            if (latency := read.get("rest_latency")) is not None:
                facts["rest_latency"] = float(latency)
            return Table(layers=layers, cells=cells, **facts, divergence=str(read["divergence"]))
        except (KeyError, TypeError, AttributeError, ValueError, ArtifactError) as error:
            raise ValueError(f"Table.from_json: this is no table of choices ({error}); make one by table.to_json().") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, in one step."""
        write_atomic(path, self.to_json().encode())

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses as a heat map, layers and groups of channels down, choices across.

        Args:
          path: of a picture, .png, .svg or .pdf.
        """
        from lepton_jax.tuning.picture import heat_map  # matplotlib is slow to import

        choices, fractions = self.choices, self._fractions
        losses = [
            [*(cells[one].loss if one in cells else None for one in choices), *[None] * len(fractions)]
            for cells in self.cells.values()
        ]
        removals = self.groups.cells if self.groups else {}
        for some in removals.values():
            losses.append([*[None] * len(choices), *(some[f].loss if f in some else None for f in fractions)])
        columns = [*map(str, choices), *(f"{100 * f:g} % of channels" for f in fractions)]
        rows = [*self.cells, *(f"channels of {name}" for name in removals)]
        heat_map(path, rows, columns, losses, self.divergence)


def _cell(loss: Any, size: Any, macs: Any, latency: Any = None) -> Cell:
    return Cell(float(loss), int(size), float(macs), None if latency is None else float(latency))


def _groups(read: Any) -> Groups | None:
    if read is None:
        return None
    cells = {
        str(name): {float(f): Removal(float(loss), int(size), float(macs), tuple(gone)) for f, loss, size, macs, gone in some}
        for name, some in read["cells"].items()
    }
    return Groups(plan=Plan.from_json(json.dumps(read["plan"])), cells=cells)


def layer_of(read: Mapping[str, Any]) -> Layer:
    """Undo `dataclasses.asdict` of a layer that went through JSON.

    Example:
      >>> layer = Layer(shape=(2, 3), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=6.0)
      >>> layer_of(json.loads(json.dumps(dataclasses.asdict(layer)))) == layer
      True
    """
    axes: dict[str, Any] = {
        name: value if isinstance(value, bool) else tuple(map(int, value)) for name, value in read["axes"].items()
    }
    return Layer(shape=tuple(map(int, read["shape"])), axes=WeightAxes(**axes), macs=float(read["macs"]))


def choice_of(read: Mapping[str, Any]) -> Choice:
    """Undo `dataclasses.asdict` of a choice that went through JSON.

    Example:
      >>> choice_of({"bits": 4, "sparsity": 0.5, "kept": [], "rank": 0.0})
      Choice(bits=4, sparsity=0.5, kept=(), rank=0.0)
    """
    return Choice(**{**read, "kept": tuple(map(int, read["kept"]))})
