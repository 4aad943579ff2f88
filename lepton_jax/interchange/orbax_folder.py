"""Orbax checkpoints, as they lie in a folder."""

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lepton_jax.coding.arrays import dtype_of
from lepton_jax.core.arguments import checked
from lepton_jax.core.files import ArtifactError, open_file
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import fit_template, foreign, nested, to_named

_METADATA = "_METADATA"
_STEP = re.compile(r"(?:.*_)?[0-9]{1,18}", re.ASCII | re.DOTALL)
_MAX_DEPTH, _MOST_FILES, _ROOM_OF_JSON = 2, 1 << 20, 20
_ITEMS = ("default", "state", "params", "model", "item")


@checked
def load_orbax(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read an orbax checkpoint, on any devices.

    To make a `.lepton` file of it: ``lepton_jax.save(path, apply, load_orbax(folder), example)``.

    Args:
      path: the folder of a checkpoint (`StandardCheckpointer`, `PyTreeCheckpointer`), of one of its steps, or of a
        `CheckpointManager`, of which the newest step is read.
      template: what it must hold, see Returns; None: whatever there is.

    Returns:
      the saved tree, of dictionaries and lists with NumPy leaves; a checkpoint of `lepton_jax.training` by the fields of its
      `TrainState`. With a template, a tree of its structure.

    Raises:
      ValueError: if the folder holds no orbax checkpoint, a damaged one, links, or arrays that its size does not allow, or not
        the template's names, shapes and dtypes.

    Example:
      >>> import tempfile
      >>> from lepton_jax.training import Checkpoints
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(folder) as checkpoints:
      ...     checkpoints.save(7, {"params": {"w": np.ones(2, np.float32)}})
      >>> load_orbax(folder)
      {'params': {'w': array([1., 1.], dtype=float32)}}
    """
    # Imported here because it takes a third of a second that other uses of the package need not wait for.
    import orbax.checkpoint as ocp

    if not os.path.isdir(path):
        raise ValueError(f"{os.fspath(path)} is no folder; an orbax checkpoint is one. Give the folder that it was saved to.")
    folder = _checkpoint(Path(path).absolute())
    allowance = Allowance(_size(folder))
    what = f"{os.fspath(path)} is no whole orbax checkpoint of plain arrays"
    parse_json(_text(folder / _METADATA, allowance), f"{os.fspath(path)}: {_METADATA}")
    with foreign(what), ocp.PyTreeCheckpointer() as checkpointer:
        about = checkpointer.metadata(folder).item_metadata
        tree = getattr(about, "tree", about)
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            _ask(allowance, jax.tree_util.keystr(keys, simple=True, separator="/"), leaf)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        loaded = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    # A training state is saved flat, under its paths.
    loaded = nested(loaded) if isinstance(loaded, dict) and any("/" in str(key) for key in loaded) else loaded
    return loaded if template is None else fit_template(to_named(loaded)[0], template, path)


def _ask(allowance: Allowance, name: str, leaf: Any) -> None:
    """Ask for the room of a leaf that the folder declares.

    Raises:
      ArtifactError: if it is no array or number, or too large for the folder.
    """
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)
    if dtype is not None:
        dtype = dtype_of(np.dtype(dtype).name)
    room = math.prod(max(n, 1) for n in shape or ()) * (dtype.itemsize if dtype is not None else 8)
    allowance.memory(room, shown(name))


def _size(folder: Path) -> int:
    """Bytes of all files of a folder.

    Raises:
      ArtifactError: for what is neither file nor folder, a link among it: a checkpoint has none, and one may lead elsewhere.
    """
    total, most = 0, _MOST_FILES
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = os.lstat(os.path.join(place, name))
            most -= 1
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) or most < 0:
                raise ArtifactError(f"{folder}: {shown(name)} is neither a file nor a folder, or there are too many; remove it")
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _text(path: Path, allowance: Allowance) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        allowance.memory(_ROOM_OF_JSON * size, f"{path}")
        return file.read(size)


def _checkpoint(folder: Path, depth: int = 0) -> Path:
    """The folder of the tree itself, which may lie in a step of a manager and in one of its items.

    Raises:
      ValueError: if there is none.
    """
    if (folder / _METADATA).is_file():
        return folder
    steps = [child for child in folder.iterdir() if child.is_dir() and _STEP.fullmatch(child.name)]
    if steps and depth < _MAX_DEPTH:
        return _checkpoint(max(steps, key=lambda child: int(child.name.rpartition("_")[2])), depth + 1)
    for name in _ITEMS:
        if (folder / name / _METADATA).is_file():
            return folder / name
    raise ValueError(f"{folder} holds no orbax checkpoint (no {_METADATA} in it or in a step's folder).")
