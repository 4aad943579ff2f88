"""How much every choice spoils of a model's outputs, and what it costs: one layer at a time."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as File
from typing import Any, Literal

from tqdm.auto import tqdm

from lepton_jax.artifact import tensor_bytes
from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.finite import check_finite
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph.cost import cost
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.roles import weights
from lepton_jax.graph.trace import Apply
from lepton_jax.tuning.deployed import Deployed
from lepton_jax.tuning.gradients import Gradients
from lepton_jax.tuning.layer import Layer
from lepton_jax.tuning.options import Choice, Option, combinations
from lepton_jax.tuning.outputs import Divergence, Outputs
from lepton_jax.tuning.packing import Packing
from lepton_jax.tuning.table import Cell, Table

By = Literal["outputs", "gradients"]


@checked
def measure(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    options: Sequence[Option],
    *,
    select: Select | None = None,
    divergence: Divergence = "kl",
    by: By = "outputs",
    file: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Table:
    """Compress each layer alone in every way that the options allow, and note what that does and costs.

    A choice is one width of `Bits` or none, with one of `Sparsity`, `NofM`, `Rank` or none of these. The model is compiled
    once: what a choice makes of a weight is an array of the same shape.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs; no labels are needed.
      options: what to try: ``[Bits(2, 4, 8), Sparsity(0.5, 0.8), Rank(0.25, 0.5)]``.
      select: which leaves; None: all weights of dots, convolutions and look-ups. Of a loaded program, which cannot be looked
        into, what looks like a weight by name and shape, with the outputs last and no work known.
      divergence: how far outputs are from those of the model as it is. "kl": the mean over examples of
        ``KL(softmax(dense) | softmax(compressed))``, in nats, for outputs that are logits; one an example, (batch,) or
        (batch, 1), is that of a sigmoid.
        "error": ``|compressed - dense|^2 / |dense|^2``.
      by: "outputs": the model is run. "gradients": to second order, ``E (g' dw)^2 / 2`` with gradients g of the KL divergence
        in random directions of the outputs, from a few backward passes: much less work for many choices, exact for small
        changes only.
      file: where the table is kept, layer by layer; one that is there is gone on with.
      progress: show a bar.

    Returns:
      the table; for `allocate`.

    Raises:
      ValueError: for no option, no batch, weights or outputs that are not finite, or a file of another model.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.tuning import Bits
      >>> variables = {"w": jnp.array([[1.0, -0.2], [0.3, 0.7]])}
      >>> found = measure(lambda v, x: x @ v["w"], variables, [jnp.eye(2)], [Bits(2, 8)], progress=False)
      >>> [round(cell.loss, 4) for cell in found.cells["w"].values()]
      [0.0, 0.0141, 0.0]

    Source: sensitivity of one layer at a time: Dong et al. 2019, "HAWQ"; KL to the float outputs: Cai et al. 2020, "ZeroQ".
    """
    check_option("measure: divergence", divergence, Divergence)
    check_option("measure: by", by, By)
    choices, given = combinations(options), [as_inputs(batch) for batch in batches]
    if not given:
        raise ValueError("measure: needs at least one batch of inputs; got none.")
    layers, rest_macs = _layers(apply, variables, given[0], select)
    leaves = paths.flatten(variables)
    check_finite("measure", {path: leaves[path] for path in layers})
    rest = {path: leaf for path, leaf in leaves.items() if path not in layers}
    dense = Table(
        layers=layers,
        cells={},
        rest_bytes=tensor_bytes(rest, quick=True),
        rest_macs=rest_macs,
        divergence=divergence,
        variables=variables,
        deployed=Deployed(apply, given[0]),
    )
    cells = _kept(file, dense)
    outputs = Outputs(apply, variables, given, divergence)
    packing = dense.packing
    assert packing is not None
    judge = outputs if by == "outputs" else Gradients(outputs, list(layers))
    for path in tqdm(layers, desc="measure", unit="layer", disable=not progress):
        if path not in cells:
            cells[path] = _layer(path, layers[path], choices, packing, judge)
            if file is not None:
                _part(dense, cells).save(file)
    return _part(dense, cells)


def _layers(apply: Apply, variables: PyTree, inputs: tuple[Any, ...], select: Select | None) -> tuple[dict[Path, Layer], float]:
    """The weights and their work, and the work that is none of theirs."""
    known = weights(apply, variables, *inputs)
    chosen = paths.select(variables, known if select is None else select)
    found = cost(apply, variables, *inputs)
    layers = {}
    for path, leaf in chosen.items():
        axes = known.axes(path)
        if axes is None and path in known.roles and known.roles[path].kind == "unseen":
            axes = WeightAxes(spatial=tuple(range(leaf.ndim - 2)), inputs=(leaf.ndim - 2,), outputs=(leaf.ndim - 1,))
        if axes is None:
            raise ValueError(f"measure: {path} is no weight, but {known.roles[path].kind}; exclude it by `select`.")
        layers[path] = Layer(shape=tuple(leaf.shape), axes=axes, macs=float(found.parameters[path].macs))
    return layers, float(found.macs - sum(layer.macs for layer in layers.values()))


def _layer(
    path: Path, layer: Layer, choices: Sequence[Choice], packing: Packing, judge: Callable[[Path, Array], float]
) -> dict[Choice, Cell]:
    cells = {}
    each = {choice: settled for choice in choices if (settled := layer.settled(choice)) is not None}
    distinct = list(dict.fromkeys(each.values()))
    made = dict(zip(distinct, packing.all_of(path, distinct)))
    for choice, settled in each.items():
        packed, view = made[settled]
        loss = judge(path, view) if choice != Choice() else 0.0
        if not math.isfinite(loss):
            raise ValueError(f"measure: with {path} of {choice} the outputs are not finite.")
        cells[choice] = Cell(max(loss, 0.0), tensor_bytes({path: packed}, quick=True), layer.macs_of(settled))
    return cells


def _part(dense: Table, cells: dict[Path, dict[Choice, Cell]]) -> Table:
    """The table of those layers that are measured; the file of an unfinished one has fewer."""
    there = {path: layer for path, layer in dense.layers.items() if path in cells}
    return dataclasses.replace(dense, layers=there, cells={path: cells[path] for path in there})


def _kept(file: str | os.PathLike[str] | None, dense: Table) -> dict[Path, dict[Choice, Cell]]:
    """What a file has of this model already."""
    if file is None or not File(file).exists():
        return {}
    read = Table.from_json(File(file).read_text())
    same = read.rest_bytes == dense.rest_bytes and read.divergence == dense.divergence
    if not same or any(dense.layers.get(path) != layer for path, layer in read.layers.items()):
        raise ValueError(f"measure: {os.fspath(file)} is the table of another model, or another divergence; name another file.")
    return {path: dict(cells) for path, cells in read.cells.items()}


__all__ = ["measure"]
