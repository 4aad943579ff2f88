"""A model in eight bits as an engine runs it: calibrated, simulated, saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact.inputs import Axes
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import check_option
from lepton_jax.core.extras import import_extra
from lepton_jax.core.files import write_atomic
from lepton_jax.core.packed import Coded, is_packed
from lepton_jax.core.paths import flatten
from lepton_jax.core.tables import table
from lepton_jax.deploy.calibrate import calibrated
from lepton_jax.deploy.engine import Engine
from lepton_jax.deploy.inlined import inlined
from lepton_jax.deploy.models import Deployable, deployable, folded, shapes_of, traced_for
from lepton_jax.deploy.simulate import Simulating
from lepton_jax.deploy.sites import Grid, Site, find
from lepton_jax.formats.ranges import Calibration, MinMax
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.graph.trace import trace
from lepton_jax.native import packed

Target = Engine


@checked
@dataclass(frozen=True, eq=False, kw_only=True)
class Placed:
    """A model with weights and activations in eight bits; of `place`.

    Args:
      model: in one piece, of float weights.
      sites: the values in eight bits, by name.
      grids: how those with a scale of their own are rounded.
      target: the engine.
      largest: of weights' codes.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import Model
      >>> model = Model(lambda v, x: x @ v, jnp.eye(2), (jnp.ones((1, 2)),))
      >>> print(place(model, [jnp.array([[0.0, 255.0]])]))
      value    scale  zero point  why
      input_0      1           0  multiplied in dot_general
    """

    model: Deployable
    sites: Mapping[str, Site]
    grids: Mapping[str, Grid]
    target: Engine
    largest: int

    def __post_init__(self) -> None:
        check_option("Placed: target", self.target, Target)

    def __str__(self) -> str:
        rows: list[Any] = [("value", "scale", "zero point", "why")]
        for site in self.sites.values():
            grid = self.grids[site.of]
            why = site.reason if site.of == site.name else f"{site.reason}; as {site.of}"
            rows.append((site.name, f"{grid.scale:.6g}", grid.zero_point, why))
        return table(rows, left=(0, 3))

    def simulator(self, *shapes: Any) -> Simulating:
        """The interpreter of the graph at these inputs' shapes."""
        traced = trace(self.model.apply, self.model.variables, *shapes)
        return Simulating(traced, self.sites, self.grids, self.largest)

    def _computed(self, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        simulator = self.simulator(*shapes_of(inputs))
        values = [*map(np.asarray, jax.tree.leaves(self.model.variables)), *jax.tree.leaves(inputs)]
        outs = simulator.run(values)
        return jax.tree.unflatten(simulator.traced.out_tree, outs), simulator.seen

    @cached_property
    def _run(self) -> Any:
        return jax.jit(self._computed)

    def simulate(self, *inputs: Any) -> Any:
        """Return what the engine gives for these inputs, in its own arithmetic.

        Of dense and convolutional nets bit for bit; of operations that are not in eight bits (attention, layer norms) within
        their rounding, which a step of codes may make visible.

        Args:
          *inputs: as the model takes them; works under jit.
        """
        return self._run(*inputs)[0]

    def codes(self, *inputs: Any) -> dict[str, Any]:
        """Return the codes of every value in eight bits, by its name, as `simulate` computes them."""
        return self._run(*inputs)[1]

    @property
    def variables(self) -> Any:
        """What is multiplied and added, before it is rounded: batch norms folded, packed leaves opened."""
        return self.model.variables

    def apply(self, variables: Any, *inputs: Any) -> Any:
        """Return what the engine would give with other variables, to train them: it has a derivative for them.

        The same values are rounded as in `simulate`, by the same ranges, and weights by their own largest; derivatives go
        straight through, and are zero where a range cuts off. The numbers are those of `simulate` but for float32's rounding,
        which may move a code by a step. Weights in few steps, as a view of `fake_quant` gives them, keep them. Runs
        in evaluation mode: no dropout, and batch norms are part of the weights.

        Args:
          variables: as `variables`, e.g. under training.
          *inputs: as the model takes them; works under jit, grad and vmap.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from lepton_jax import Model
          >>> placed = place(Model(lambda v, x: x @ v, jnp.eye(2)), [jnp.array([[0.0, 255.0]])])
          >>> jax.grad(lambda v: placed.apply(v, jnp.array([[3.4, 300.0]])).sum())(placed.variables)
          {'': Array([[  3.,   3.],
                 [255., 255.]], dtype=float32)}
        """
        from lepton_jax.deploy.training import Training

        traced = trace(self.model.apply, variables, *shapes_of(inputs))
        interpreter = Training(traced, self.sites, self.grids, self.largest)
        outs = interpreter.run([*jax.tree.leaves(variables), *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(traced.out_tree, outs)

    def tuned(self, variables: Any) -> Placed:
        """Return the same with other variables, as training `apply` gives them: the file is of these.

        Args:
          variables: as `variables`.

        Raises:
          ValueError: for another structure, other shapes, and numbers that are not finite.
        """
        wanted, got = ([(path, _kind_of(leaf)) for path, leaf in flatten(tree).items()] for tree in (self.variables, variables))
        if wanted != got:
            other = [f"{path or 'the variables'}: {kind}" for path, kind in got if (path, kind) not in wanted] or [
                "fewer leaves"
            ]
            raise ValueError(f"Placed.tuned: variables must be like .variables; these are not: {', '.join(other[:9])}.")
        _check_finite(variables)
        return replace(self, model=self.model._replace(variables=jax.tree.map(np.asarray, variables)))

    def save(
        self, path: str | os.PathLike[str], *, axes: Axes | None = None, constraints: tuple[str, ...] = (), codes: bool = False
    ) -> None:
        """Write the file that the engine runs.

        Args:
          path: of the file, ``.onnx``; ``.tflite`` for LiteRT.
          axes: as in `save`.
          constraints: likewise.
          codes: give the codes of every value in eight bits as further outputs, ``codes_0, codes_1, ...`` in the order of
            `sites`, to look at.

        Raises:
          ValueError, ArtifactError, ImportError: as `save`.
        """
        suffix, wanted = os.path.splitext(os.fspath(path))[1], ".tflite" if self.target == "litert" else ".onnx"
        if suffix != wanted:
            raise ValueError(f"place: path must end in {wanted} for {self.target}; got {os.fspath(path)!r}.")
        if self.target == "litert":
            from lepton_jax.deploy.to_litert.rounded import file_of

            write_atomic(path, file_of(self, axes, constraints))
            return
        import_extra("onnx", "deploy")
        from lepton_jax.deploy.to_onnx import blocks, write

        model, traced = traced_for([self.model], axes, constraints)
        if set(find(traced)) != set(self.sites):  # operations have other names where the batch has any length
            model, traced = traced_for([self.model], {})
        made = write.model_of(traced, write.entering(model.variables), name="deploy.place", exporter=self._exporter(codes))
        if self.target == "onnxruntime":
            blocks.in_blocks(made)
        write_atomic(path, write.bytes_of(made, os.fspath(path)))

    def _exporter(self, codes: bool) -> Any:
        from lepton_jax.deploy.to_onnx.rounded import RoundedExporter

        return partial(RoundedExporter, sites=self.sites, grids=self.grids, largest=self.largest, show=codes)


@checked_but("model", "calibration")
def place(
    model: Any,
    batches: Iterable[Any],
    target: Target = "onnxruntime",
    *,
    calibration: Calibration | None = None,
    reduce_range: bool = False,
) -> Placed:
    """Put the weights and activations of a model into eight bits, as an engine multiplies them fastest.

    Rounded are the values that engines want so (see `deploy.sites`): inputs of what weights multiply, results of convolutions,
    both sides and results of residual additions; unsigned, with a zero point. Weights are signed, with a scale for each output;
    biases are whole numbers. Batch norms are folded first. What `simulate` gives is what the saved file gives.

    Args:
      model: a `lepton_jax.Model`, or a loaded `.lepton` file. Codes among its packed leaves are unpacked, and rounded anew;
        factors stay factors.
      batches: inputs to find ranges on: each an array, or a tuple of arrays where the model takes several.
      target: "onnxruntime" or "openvino", which run files of ONNX; or "litert".
      calibration: finds the ranges, e.g. ``Percentile(q=99.99)``; None: everything seen.
      reduce_range: seven bits for weights, for x86 processors without VNNI, which add pairs of products in sixteen bits.

    Raises:
      ValueError: for another target; without batches, or for batches of other shapes; for ranges that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import Model
      >>> placed = place(Model(lambda v, x: x @ v, jnp.eye(2)), [jnp.array([[0.0, 255.0]])])
      >>> placed.simulate(jnp.array([[3.4, 300.0]])).tolist()
      [[3.0, 255.0]]
    """
    check_option("deploy.place: target", target, Target)
    check_calibration("deploy.place", calibration)
    several = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not several:
        raise ValueError("deploy.place: needs at least one batch, an array or a tuple of inputs; got none.")
    given = deployable("deploy.place", model, () if has_example(model) else several[0])
    _check_like(given.example, several)
    apply, variables = _thin(given)
    whole = _folded_for_any_batch(Deployable(apply, variables, shapes_of(given.example)))
    whole = whole._replace(apply=inlined(whole.apply))
    _check_finite(whole.variables)
    sites, grids = calibrated(whole.apply, whole.variables, several, calibration or MinMax())
    return Placed(model=whole, sites=sites, grids=grids, target=target, largest=63 if reduce_range else 127)


def _check_finite(variables: Any) -> None:
    """Raise unless all that is multiplied or added is finite, with the names of all that is not."""
    floats = {path: np.asarray(leaf) for path, leaf in flatten(variables).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    bad = [path or "the variables" for path, leaf in floats.items() if not np.isfinite(leaf.astype(np.float32)).all()]
    if bad:
        named = ", ".join(bad[:9])
        raise ValueError(f"deploy.place: variables must be finite; these are not: {named}. Find out why, and train anew.")


def _folded_for_any_batch(model: Deployable) -> Deployable:
    """A model with batch norms folded; as it is, if it then serves fewer batch sizes."""
    found = folded(model)
    for length in (1, 2, 3):
        shapes = jax.tree.map(partial(_of_length, length), model.example)
        if _serves(model, shapes) and not _serves(found, shapes):
            return model
    return found


def _of_length(length: int, leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((length, *leaf.shape[1:])[: len(leaf.shape)], leaf.dtype)


def _serves(model: Deployable, shapes: tuple[Any, ...]) -> bool:
    try:
        trace(model.apply, model.variables, *shapes)
    except Exception:  # whatever the traced operations raise
        return False
    return True


def has_example(model: Any) -> bool:
    """Whether a model brings inputs, or their shapes."""
    return bool(getattr(model, "example", ()) or getattr(model, "example_inputs", ()))


def _thin(model: Deployable) -> tuple[Any, Any]:
    """A function of arrays: codes unpacked, factors as leaves of their own, which it multiplies one after the other."""
    leaves = jax.tree.leaves(model.variables, is_leaf=is_packed)
    if not any(is_packed(leaf) for leaf in leaves):
        return model.apply, model.variables
    with jax.ensure_compile_time_eval():
        plain = jax.tree.map(_plain, model.variables, is_leaf=is_packed)
    tree, run = jax.tree.structure(plain), packed(model.apply)

    @wraps(model.apply)
    def apply(arrays: Any, *inputs: Any) -> Any:
        return run(jax.tree.unflatten(tree, arrays), *inputs)

    return apply, jax.tree.leaves(plain)


def _plain(leaf: Any) -> Any:
    if not is_packed(leaf):
        return leaf
    if isinstance(leaf, Coded) or leaf.native("") is None:
        return leaf.unpack()
    return jax.tree.map(
        lambda part: part.unpack() if is_packed(part) else part, leaf, is_leaf=lambda one: one is not leaf and is_packed(one)
    )


def _check_like(example: tuple[Any, ...], batches: list[tuple[Any, ...]]) -> None:
    """Raise unless batches are like the example behind their first axes."""
    wanted = [_kind(leaf) for leaf in jax.tree.leaves(example)]
    for number, batch in enumerate(batches):
        got = [_kind(leaf) for leaf in jax.tree.leaves(batch)]
        if got != wanted:
            need, have = (", ".join(map(str, kinds)) for kinds in (wanted, got))
            raise ValueError(f"deploy.place: batch {number} must be like the model's inputs ({need}); got {have}.")


def _kind_of(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _kind(leaf: Any) -> str:
    shape = np.shape(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
    return f"{np.dtype(dtype).name}[{', '.join(['any', *map(str, shape[1:])] if shape else [])}]"
