"""A model cut in two: a part at the edge, a part in the cloud, and coded values between them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from lepton_jax.artifact import Artifact, load
from lepton_jax.artifact import save as save_file
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, check_whole
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.edge.wire import Coder, Wire, fit
from lepton_jax.stages.part import Part
from lepton_jax.stages.plan import Plan


@checked
@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A model in two halves.

    Attributes:
      edge: ``edge(*inputs) -> values``, a tuple.
      cloud: ``cloud(*values) -> outputs``.
      coders: one for each value.
      parts: of both, ``(function, variables)``, to be saved.
      inputs: examples.

    Example:
      >>> import jax.numpy as jnp, os, tempfile
      >>> from lepton_jax import stages
      >>> from lepton_jax.stages import edge
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> cut = edge.cut_at(stages.plan(net, v, x, count=2), 1, net, v, x)
      >>> sent = cut.send(x[:2])
      >>> cut.receive(sent).shape, cut(x[:2]).shape
      ((2, 2), (2, 2))
    """

    edge: Callable[..., Any]
    cloud: Callable[..., Any]
    coders: tuple[Coder, ...]
    parts: tuple[tuple[Any, PyTree], ...]
    inputs: tuple[Any, ...]

    def send(self, *inputs: Any) -> tuple[bytes, ...]:
        """Return what goes over the wire, bytes for each value."""
        return tuple(coder.encode(value) for coder, value in zip(self.coders, self.edge(*inputs), strict=True))

    def receive(self, sent: Sequence[bytes]) -> Any:
        """Return the outputs from what came over the wire."""
        return self.cloud(*(coder.decode(data) for coder, data in zip(self.coders, sent, strict=True)))

    def __call__(self, *inputs: Any) -> Any:
        return self.receive(self.send(*inputs))


@checked
def cut_at(plan: Plan, place: int, apply: Apply, variables: PyTree, *inputs: Any, wire: Wire | None = None) -> Cut:
    """Cut a model between two stages of a plan, and calibrate the wire.

    Args:
      plan: of the model.
      place: before which stage, from 1; `choose` tells which.
      apply: the function.
      variables: its variables.
      *inputs: calibration examples, along the first axis; a hundred will do.
      wire: how values cross; by default in 4 bits.

    Raises:
      ValueError: for a place at which the plan has no cut.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]
      >>> v, x = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}, jnp.linspace(-1, 1, 80).reshape(20, 4)
      >>> made = cut_at(stages.plan(net, v, x, count=2), 1, net, v, x, wire=Wire(bits=8))
      >>> bool(jnp.abs(made(x) - net(v, x)).max() < 0.1)
      True
    """
    check_whole("cut_at: place", place, 1, len(plan) - 1)
    units, parts = plan.stages(apply), plan.split(variables)
    halves = tuple(_half(units[side], parts[side]) for side in (slice(place), slice(place, None)))
    edge, cloud = (partial(jax.jit(run), own) for run, own in halves)
    values = edge(*inputs)
    coders = tuple(fit(np.asarray(value), Wire() if wire is None else wire) for value in values)
    return Cut(edge, cloud, coders, halves, inputs)


@checked
def save(cut: Cut, edge: str | os.PathLike[str], cloud: str | os.PathLike[str]) -> None:
    """Write the two halves as files, each with the tables of the wire.

    Args:
      cut: from `cut_at`.
      edge: the .lepton file of the first half.
      cloud: that of the second.

    Example:
      >>> import jax.numpy as jnp, os, tempfile
      >>> from lepton_jax import stages
      >>> from lepton_jax.stages import edge
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> cut = edge.cut_at(stages.plan(net, v, x, count=2), 1, net, v, x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     edge.save(cut, f"{folder}/edge.lepton", f"{folder}/cloud.lepton")
      ...     print(sorted(os.listdir(folder)))
      ['cloud.lepton', 'edge.lepton']
    """
    wire = [coder.described() for coder in cut.coders]
    pair = hashlib.sha256(repr(wire).encode()).hexdigest()[:32]
    given = cut.inputs
    for (run, own), path, side in zip(cut.parts, (edge, cloud), ("edge", "cloud")):
        save_file(path, run, own, *given, recipe={"side": side, "pair": pair, "wire": wire})
        given = cut.edge(*cut.inputs)


@checked
def load_half(path: str | os.PathLike[str]) -> tuple[Artifact, tuple[Coder, ...], bytes, str]:
    """Open a half that `save` wrote.

    Returns:
      the program, the coders, 16 bytes that name the pair, and its side, "edge" or "cloud".

    Raises:
      ArtifactError: for another file.

    Example:
      >>> import jax.numpy as jnp, os, tempfile
      >>> from lepton_jax import stages
      >>> from lepton_jax.stages import edge
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> cut = edge.cut_at(stages.plan(net, v, x, count=2), 1, net, v, x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     edge.save(cut, f"{folder}/edge.lepton", f"{folder}/cloud.lepton")
      ...     half, coders, pair, side = edge.load_half(f"{folder}/cloud.lepton")
      >>> len(coders), len(pair), side
      (1, 16, 'cloud')
    """
    half = load(path)
    recipe = half.manifest.get("recipe")
    halves = isinstance(recipe, Mapping) and isinstance(recipe.get("wire"), list) and recipe.get("side") in ("edge", "cloud")
    if not isinstance(recipe, Mapping) or not halves:
        raise ArtifactError(f"{FilePath(path).name}: is no half of a cut model; write one with edge.save")
    pair = str(recipe.get("pair"))
    if len(pair) != 32 or not set(pair) <= set("0123456789abcdef"):
        raise ArtifactError(f"{FilePath(path).name}: does not say of which pair it is; write it anew with edge.save")
    return half, tuple(Coder.of_description(one) for one in recipe["wire"]), bytes.fromhex(pair), recipe["side"]


def _half(units: Sequence[Any], parts: Sequence[Part]) -> tuple[Callable[..., Any], PyTree]:
    """Several stages as one function, and their variables as plain dicts."""
    trees = [part.tree for part in parts]

    def run(own: Sequence[Mapping[str, Any]], *carried: Any) -> Any:
        for unit, part, tree in zip(units, own, trees, strict=True):
            carried = unit(Part(part, tree), *carried)
        return carried

    return run, [dict(part) for part in parts]
