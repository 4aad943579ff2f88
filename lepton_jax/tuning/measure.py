"""How much every choice spoils of a model's outputs, and what it costs: one layer at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as File
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.artifact import tensor_bytes
from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.finite import check_finite
from lepton_jax.core.typing import Path, PyTree, Select
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph.cost import cost
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.roles import weights
from lepton_jax.graph.trace import Apply
from lepton_jax.tuning.deployed import Deployed
from lepton_jax.tuning.engine import Engine, LayerTimes
from lepton_jax.tuning.gradients import Gradients
from lepton_jax.tuning.groups import Removal, candidates, cut
from lepton_jax.tuning.layer import Layer
from lepton_jax.tuning.options import Choice, Option, combinations
from lepton_jax.tuning.outputs import Divergence, Outputs
from lepton_jax.tuning.table import Cell, Table

By = Literal["outputs", "gradients"]
Cells = dict[Path, dict[Choice, Cell]]
Removals = dict[str, dict[float, Removal]]
Clock = Callable[[Path, Sequence[Choice]], list[float]]


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
    engine: Engine | None = None,
    file: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Table:
    """Compress each layer alone in every way that the options allow, and note what that does and costs.

    A choice is one width of `Bits` or none, with one of `Sparsity`, `NofM`, `Rank` or none of these. Besides, each group of
    channels loses those that `Channels` says, in all layers that share them. The model is compiled once: what a choice makes of
    a weight is an array of the same shape, and channels that go are zeros.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs; no labels are needed.
      options: what to try: ``[Bits(2, 4, 8), Sparsity(0.5, 0.8), Rank(0.25, 0.5), Channels(0.25, 0.5)]``.
      select: which leaves; None: all weights of dots, convolutions and look-ups. Of a loaded program, which cannot be looked
        into, what looks like a weight by name and shape, with the outputs last and no work known.
      divergence: how far outputs are from those of the model as it is. "kl": the mean over examples of
        ``KL(softmax(dense) | softmax(compressed))``, in nats, for outputs that are logits; one an example, (batch,) or
        (batch, 1), is that of a sigmoid.
        "error": ``|compressed - dense|^2 / |dense|^2``.
      by: "outputs": the model is run. "gradients": to second order, ``E (g' dw)^2 / 2`` with gradients g of the KL divergence
        in random directions of the outputs, from a few backward passes: much less work for many choices, exact for small
        changes only.
      engine: "onnxruntime": each layer is timed alone too, so that `Budget(latency=)` is steered by what was measured; None: by
        multiply-accumulates.
      file: where the table is kept, layer by layer; one that is there is gone on with.
      progress: show a bar.

    Returns:
      the table; for `allocate`.

    Raises:
      ImportError: if the engine is not installed; says how to.
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
    if engine is not None:
        check_option("measure: engine", engine, Engine)
    choices, given = combinations(options), [as_inputs(batch) for batch in batches]
    if not given:
        raise ValueError("measure: needs at least one batch of inputs; got none.")
    layers, rest_macs, others = _layers(apply, variables, given[0], select)
    leaves = paths.flatten(variables)
    check_finite("measure", {path: leaves[path] for path in layers})
    groups, gone = candidates(apply, variables, given[0], options, others)
    if choices == [Choice()] and groups is None:
        raise ValueError("measure: Channels: the model has no channels that can go; give other options besides.")
    rest = {path: leaf for path, leaf in leaves.items() if path not in layers}
    dense = Table(
        layers=layers,
        cells={},
        rest_bytes=tensor_bytes(rest, quick=True),
        rest_macs=rest_macs,
        divergence=divergence,
        groups=groups,
        about=_about(variables, given, f"{[*map(repr, options)]} {by} {engine}"),
        variables=variables,
        deployed=Deployed(apply, given[0]),
    )
    cells, removals, rest_latency = _kept(file, dense)
    clock = None
    if engine is not None:
        clock, measured_rest = _clock(apply, dense, given[0])
        dense = dataclasses.replace(dense, rest_latency=measured_rest if rest_latency is None else rest_latency)
    outputs = Outputs(apply, variables, given, divergence)
    touched = {place.path for group in groups.plan.groups for place in group.slices} if groups else set()
    changing = [*layers, *sorted(path for path in touched - set(layers) if paths.is_floating(leaves[path]))]
    judge = outputs if by == "outputs" else Gradients(outputs, changing)

    def keep() -> None:
        if file is not None:
            _part(dense, cells, removals).save(file)

    with tqdm(total=len(layers) + len(gone), desc="measure", unit="layer", disable=not progress) as bar:
        for path in layers:
            if path not in cells:
                cells[path] = _layer(path, layers[path], choices, dense, judge, clock)
                keep()
            bar.update()
        for name, each in gone.items():
            if name not in removals:
                removals[name] = {f: _removal(name, some, apply, given[0], dense, judge) for f, some in each.items()}
                keep()
            bar.update()
    return _part(dense, cells, removals)


def _layers(
    apply: Apply, variables: PyTree, inputs: tuple[Any, ...], select: Select | None
) -> tuple[dict[Path, Layer], float, set[Path]]:
    """The weights and their work, the work that is none of theirs, and the weights that are not selected."""
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
    others = set(paths.select(variables, known)) - set(layers) if select is not None else set()
    return layers, float(found.macs - sum(layer.macs for layer in layers.values())), others


def _layer(
    path: Path, layer: Layer, choices: Sequence[Choice], dense: Table, judge: Outputs | Gradients, clock: Clock | None
) -> dict[Choice, Cell]:
    cells = {}
    each = {choice: settled for choice in choices if (settled := layer.settled(choice)) is not None}
    distinct = list(dict.fromkeys(each.values()))
    assert dense.packing is not None
    made = dict(zip(distinct, dense.packing.all_of(path, distinct)))
    times = dict(zip(distinct, clock(path, distinct))) if clock is not None else {}
    for choice, settled in each.items():
        packed, view = made[settled]
        loss = _finite(judge(path, view), f"{path} of {choice}") if choice != Choice() else 0.0
        cells[choice] = Cell(loss, tensor_bytes({path: packed}, quick=True), layer.macs_of(settled), times.get(settled))
    return cells


def _clock(apply: Apply, dense: Table, inputs: tuple[Any, ...]) -> tuple[Clock, float]:
    """What times layers, and the time of the model that is none of theirs.

    Layers alone have calls of their own; where they take more together than the model, each is counted as that much less.
    """
    assert dense.deployed is not None
    times = LayerTimes(apply, dense.variables, inputs)
    whole = dense.deployed.latency(dense.variables)
    alone = sum(times.of(path, [Choice()])[0] for path in dense.layers)
    share = min(whole / alone, 1.0) if alone else 1.0
    return lambda path, choices: [share * seconds for seconds in times.of(path, choices)], whole - share * alone


def _removal(
    name: str, removed: tuple[int, ...], apply: Apply, inputs: tuple[Any, ...], dense: Table, judge: Outputs | Gradients
) -> Removal:
    """What it does to remove some channels of a group; the model runs with zeros in their places."""
    assert dense.groups is not None
    assert dense.packing is not None
    chosen = dense.groups.without(name, removed)
    loss = _finite(judge.of(dense.packing.seen({}, chosen)), f"{len(removed)} channels fewer in {name}")
    left = paths.flatten(dense.packing.packed({}, chosen))
    size = tensor_bytes({path: leaf for path, leaf in left.items() if path not in dense.layers}, quick=True)
    macs = 0.0
    if dense.rest_macs:
        shapes = chosen.shrink(jax.eval_shape(lambda: dense.variables))
        whole = cost(chosen.rewrite(apply), shapes, *inputs).macs
        macs = whole - sum(cut(layer, path, chosen).macs for path, layer in dense.layers.items()) - dense.rest_macs
    return Removal(loss, size - dense.rest_bytes, float(macs), removed)


def _finite(loss: float, what: str) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"measure: with {what} the outputs are not finite.")
    return max(loss, 0.0)


def _part(dense: Table, cells: Cells, removals: Removals) -> Table:
    """The table of those layers and groups that are measured; the file of an unfinished one has fewer."""
    there = {path: layer for path, layer in dense.layers.items() if path in cells}
    groups = None if dense.groups is None else dataclasses.replace(dense.groups, cells=removals)
    return dataclasses.replace(dense, layers=there, cells={path: cells[path] for path in there}, groups=groups)


def _kept(file: str | os.PathLike[str] | None, dense: Table) -> tuple[Cells, Removals, float | None]:
    """What a file has of this model already."""
    if file is None or not File(file).exists():
        return {}, {}, None
    read = Table.from_json(File(file).read_text())
    if read.about != dense.about or read.divergence != dense.divergence:
        raise ValueError(
            f"measure: {os.fspath(file)} is the table of another model, or of other batches, options or another divergence; "
            "name another file."
        )
    removals = {name: dict(some) for name, some in read.groups.cells.items()} if read.groups else {}
    return {path: dict(cells) for path, cells in read.cells.items()}, removals, read.rest_latency


def _about(variables: PyTree, batches: Sequence[Any], settings: str) -> str:
    """A checksum of all that a table is measured of."""
    found = hashlib.sha256(settings.encode())
    for path, leaf in paths.flatten((variables, list(batches))).items():
        key = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        array = np.asarray(key)
        found.update(f"{path} {array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


__all__ = ["measure"]
