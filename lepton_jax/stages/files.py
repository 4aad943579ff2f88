"""Stages as files: one `.lepton` file each, and a manifest that says who feeds whom."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import jax

from lepton_jax.artifact import ArtifactError
from lepton_jax.artifact import load as load_file
from lepton_jax.artifact import save as save_file
from lepton_jax.core.arguments import checked
from lepton_jax.core.files import read_json, write_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.part import Part
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.unit import Unit

MANIFEST = "stages.json"
_NAME = re.compile(r"stage_\d{1,4}\.lepton")
_REMEDY = "Write the stages anew with stages.save."


@checked
def save(folder: str | os.PathLike[str], plan: Plan, apply: Apply, variables: PyTree, *inputs: Any) -> None:
    """Write every stage as a `.lepton` file of its own, and a manifest.

    The manifest is written last: a folder without one is not whole.

    Args:
      folder: made if it is not there.
      plan: of the model.
      apply: the function.
      variables: its variables.
      *inputs: examples of its inputs.

    Raises:
      ArtifactError: if a file cannot be written, or a stage cannot be exported.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net = lambda v, x: jnp.sin(x @ v["a"]) @ v["b"]
      >>> v, x = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, jnp.zeros((1, 3))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     stages.save(folder, stages.plan(net, v, x, count=2), net, v, x)
      ...     print(sorted(os.listdir(folder)), stages.load(folder)(x).tolist())
      ['stage_0.lepton', 'stage_1.lepton', 'stages.json'] [[0.0, 0.0]]
    """
    place = FilePath(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write the stages into {place}: {error.strerror or error}") from error
    carried, rows = inputs, []
    for number, (unit, part) in enumerate(zip(plan.stages(apply), plan.split(variables))):
        name = f"stage_{number}.lepton"
        save_file(
            place / name, partial(_plain, unit, part.tree), dict(part), *carried, recipe={"stage": number, "of": len(plan)}
        )
        data = (place / name).read_bytes()
        rows.append({"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "takes": _shapes(carried)})
        carried = jax.eval_shape(unit, part, *carried)
        rows[-1] |= {"returns": _shapes(carried), "to": number + 1 if number + 1 < len(plan) else "the caller"}
    write_json(place / MANIFEST, {"version": 1, "stages": rows})


@checked
def load(folder: str | os.PathLike[str]) -> SavedStages:
    """Open the stages of a folder, without the model's code.

    Args:
      folder: that `save` wrote.

    Raises:
      ArtifactError: for a folder without a manifest, a damaged one, and files that are missing or are not the manifest's.

    Example:
      >>> import tempfile
      >>> load(tempfile.gettempdir())
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: ...stages.json cannot be read (No such file or directory): the folder holds no \
stages.
    """
    place, manifest = FilePath(folder), read_manifest(folder)
    return SavedStages([load_file(place / row["file"]) for row in manifest["stages"]], manifest)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a folder of stages, its files compared with it; errors as of `load`."""
    place = FilePath(folder)
    try:
        manifest = read_json(place / MANIFEST, _REMEDY)
    except OSError as error:
        raise ArtifactError(f"{place / MANIFEST} cannot be read ({error.strerror}): the folder holds no stages.") from error
    rows = manifest.get("stages")
    if manifest.get("version") != 1 or not isinstance(rows, list) or not rows:
        raise ArtifactError(f"{place / MANIFEST}: is no list of stages of version 1. {_REMEDY}")
    for row in rows:
        name = row.get("file") if isinstance(row, Mapping) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArtifactError(f"{place / MANIFEST}: {shown(name)} is no name of a stage's file. {_REMEDY}")
        try:
            found = hashlib.sha256((place / name).read_bytes()).hexdigest()
        except OSError as error:
            raise ArtifactError(
                f"{place / name}: cannot be read ({error.strerror}), but the manifest names it. {_REMEDY}"
            ) from error
        if found != row.get("sha256"):
            raise ArtifactError(f"{place / name}: is not the file of the manifest (sha256 {found[:12]}...). {_REMEDY}")
    return manifest


@checked
class SavedStages:
    """Loaded stages; calling them runs one after another.

    Args:
      units: the stages, each of which takes what the one before returns; `load` gives an `Artifact` each.
      manifest: what the folder says about them.

    Example:
      >>> SavedStages([lambda x: (2 * x,), lambda x: x + 1], {})(3)
      7
    """

    def __init__(self, units: Sequence[Callable[..., Any]], manifest: Mapping[str, Any]):
        self.units, self.manifest = tuple(units), manifest

    def __call__(self, *inputs: Any) -> Any:
        carried: Any = inputs
        for unit in self.units[:-1]:
            carried = unit(*carried)
        return self.units[-1](*carried)


def _plain(unit: Unit, tree: Any, part: Mapping[str, Any], *carried: Any) -> Any:
    """A stage as a function of a plain dict."""
    return unit(Part(part, tree), *carried)


def _shapes(values: Any) -> list[str]:
    return [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(values)]
