"""Every reader of files, and what hostile files it is given: the rows of a table."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.hostile import command_files, foreign_files, lepton_files, programs
from experiments.hostile.judged import MOST_SECONDS, Outcome, judged
from lepton_jax.artifact import Artifact, ArtifactError, load
from lepton_jax.core.packed import is_coded, is_packed
from lepton_jax.data.compressed import open_dataset
from lepton_jax.interchange import load_npz, load_orbax, load_safetensors, load_torch_resnet
from lepton_jax.models import ResNetCifar

_PLACE = re.compile(r"offsets? \d|tensor |the manifest")
_RUN = 10.0
"""Seconds of processor time for a file whose program is compiled and run, too."""


def _right(found: Any) -> str:
    return ""


class Made(NamedTuple):
    """A file that was written: what was done to it, and what says why what was read of it is not right, or ""."""

    what: str
    check: Callable[[Any], str] = _right


class Kind(NamedTuple):
    """A kind of file.

    Args:
      file: its name.
      make: writes the file of a case at a path, from (seed, case).
      read: what reads it, to a tree of arrays.
      errors: how it may be refused.
      says: whether an error's text says enough.
      apart: whether to read it in a process of its own, with limits.
      share: of a hundred files, so many are of this kind.
      seconds: of processor time that it may take.
    """

    file: str
    make: Callable[[int, int, Path], Made]
    read: Callable[[Path], Any]
    share: float
    errors: tuple[type[Exception], ...] = (ValueError,)
    says: Callable[[str], bool] = lambda text: True
    apart: bool = False
    seconds: float = MOST_SECONDS

    def attempt(self, folder: Path, seed: int, case: int) -> Outcome:
        """Make the file of a case, and judge what comes of it."""
        path = folder / self.file
        made = self.make(seed, case, path)
        return judged(made.what, lambda: self.read(path), made.check, errors=self.errors, says=self.says, seconds=self.seconds)


def tensor_bits(artifact: Artifact) -> list[tuple[Any, ...]]:
    """All arrays of a file's leaves, with their dtypes and shapes; random keys as their words."""
    parts = [
        jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(artifact.packed)
    ]
    return [(np.shape(part), str(part.dtype), np.asarray(part).tobytes()) for part in parts]


@functools.cache
def _good_bits() -> list[list[tuple[Any, ...]]]:
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder, "f"), []
        for good in lepton_files.good_files():
            path.write_bytes(good.file)
            found.append(tensor_bits(load(path)))
        return found


def _inconsistent(artifact: Artifact) -> str:
    """Why the leaves are not what the manifest says, if so; shapes only, nothing is computed."""
    for leaf in jax.tree.leaves(artifact.packed, is_leaf=is_packed):
        dense = jax.eval_shape(lambda one: one.unpack(), leaf) if is_packed(leaf) else leaf
        if dense.shape != leaf.shape:
            return f"unpacks to {dense.shape}, declares {leaf.shape}"
    declared = sorted(spec.shape for _, spec, _, _ in artifact._parts.tensors)  # jax sorts the keys of mappings
    found = sorted(leaf.shape for leaf in jax.tree.leaves(artifact.packed, is_leaf=is_coded))
    return "" if declared == found else f"shapes {found}, declares {declared}"


def _lepton(seed: int, case: int, path: Path) -> Made:
    file = lepton_files.hostile(lepton_files.good_files(), seed, case)
    path.write_bytes(file.data)

    def check(opened: Artifact) -> str:
        if not file.sealed and tensor_bits(opened) != _good_bits()[file.good]:
            return "other tensors under unchanged checksums"
        return _inconsistent(opened)

    return Made(file.kind, check)


def _of(maker: Callable[[np.random.Generator, Path], bytes | None], what: str) -> Callable[[int, int, Path], Made]:
    def make(seed: int, case: int, path: Path) -> Made:
        data = maker(np.random.default_rng([seed, case]), path)
        if data is not None:
            path.write_bytes(data)
        return Made(what)

    return make


def _named(make: Callable[[int, int, Path], Made], what: str) -> Callable[[int, int, Path], Made]:
    """The same files, for a reader that gives nothing to check."""

    def made(seed: int, case: int, path: Path) -> Made:
        make(seed, case, path)
        return Made(what)

    return made


def _weights(rng: np.random.Generator, path: Path) -> bytes:
    return (foreign_files.npz if path.suffix == ".npz" else foreign_files.safetensors)(rng, path)


def _program(seed: int, case: int, path: Path) -> Made:
    rng = np.random.default_rng([seed, case])
    what, data = programs.hostile_program(rng)
    path.write_bytes(data)
    command_files.inputs(rng, path)
    return Made(what)


def _loaded(path: Path) -> Artifact:
    """A file with all that its reader may ask of it but its program."""
    opened = load(path)
    jax.block_until_ready(opened.variables)
    str(opened.account())
    return opened


def _read_set(path: Path) -> Any:
    with open_dataset(path) as data:
        str(data.report())
        return [data[0] if len(data) else {}, data.arrays(progress=False) if len(data) < 1 << 16 else {}]


def _read_torch(path: Path) -> Any:
    return load_torch_resnet(path, ResNetCifar(depth=8, features=2))


KINDS = {
    "lepton": Kind("f.lepton", _lepton, _loaded, 40, (ArtifactError,), lambda text: bool(_PLACE.search(text))),
    "npz": Kind("f.npz", _of(foreign_files.npz, "npz"), load_npz, 13),
    "safetensors": Kind("f.safetensors", _of(foreign_files.safetensors, "safetensors"), load_safetensors, 15),
    "data sets": Kind("f.lepd", _of(foreign_files.dataset, "data sets"), _read_set, 13),
    "orbax": Kind("run", _of(foreign_files.orbax, "orbax"), load_orbax, 4),
    "torch": Kind("t.safetensors", _of(foreign_files.safetensors, "torch"), _read_torch, 4),
    "commands on npz": Kind("c.npz", _of(_weights, "commands on npz"), command_files.of_weights, 3),
    "commands on safetensors": Kind("c.safetensors", _of(_weights, "commands on safetensors"), command_files.of_weights, 3),
    "commands on lepton": Kind("c.lepton", _named(_lepton, "commands on lepton"), command_files.of_models, 3.5),
    "programs": Kind("p.lepton", _program, programs.execute, 1, apart=True, seconds=_RUN),
    "command run": Kind("r.lepton", _named(_program, "command run"), command_files.running, 0.5, apart=True, seconds=_RUN),
}


def shares(files: int) -> dict[str, int]:
    """How many of so many files are of each kind; every kind has one at least.

    Example:
      >>> shares(1000)["lepton"], sum(shares(1000).values())
      (400, 1000)
    """
    return {name: max(round(files * kind.share / 100), 1) for name, kind in KINDS.items()}
