"""Orbax checkpoints, as they lie in a folder."""

import os
from pathlib import Path

import jax
import numpy as np

from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import fit_template, nested, to_named

_METADATA = "_METADATA"
_ITEMS = ("default", "state", "params", "model", "item")


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
      ValueError: if the folder holds no orbax checkpoint, or not the template's names, shapes and dtypes.

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
    with ocp.PyTreeCheckpointer() as checkpointer:
        about = checkpointer.metadata(folder).item_metadata
        tree = getattr(about, "tree", about)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        loaded = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    # A training state is saved flat, under its paths.
    loaded = nested(loaded) if isinstance(loaded, dict) and any("/" in str(key) for key in loaded) else loaded
    return loaded if template is None else fit_template(to_named(loaded)[0], template, path)


def _checkpoint(folder: Path) -> Path:
    """The folder of the tree itself, which may lie in a step of a manager and in one of its items.

    Raises:
      ValueError: if there is none.
    """
    if (folder / _METADATA).exists():
        return folder
    steps = [child for child in folder.iterdir() if child.is_dir() and child.name.rpartition("_")[2].isdigit()]
    if steps:
        return _checkpoint(max(steps, key=lambda child: int(child.name.rpartition("_")[2])))
    for name in _ITEMS:
        if (folder / name / _METADATA).exists():
            return folder / name
    raise ValueError(f"{folder} holds no orbax checkpoint (no {_METADATA} in it or in a step's folder).")
