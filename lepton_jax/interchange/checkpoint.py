"""One function that reads variables from whatever holds them."""

import os
from pathlib import Path

from lepton_jax.artifact import load
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import fit_template, to_named
from lepton_jax.interchange.npz import load_npz, save_npz
from lepton_jax.interchange.orbax_folder import load_orbax
from lepton_jax.interchange.safetensors_file import load_safetensors, save_safetensors

_TRAIN_STATE = {"params", "model_state", "opt_state", "tstate"}
_READERS = {".lepton": lambda path: load(path).variables, ".safetensors": load_safetensors, ".npz": load_npz}
_WRITERS = {".safetensors": save_safetensors, ".npz": save_npz}


@checked
def load_variables(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read variables from a `.lepton` or safetensors file, an ``.npz``, or the folder of an orbax checkpoint.

    Args:
      path: what it is shows in its name; a folder is an orbax checkpoint. Of a training state, only the variables are taken:
        ``{"params": ..., **model_state}``.
      template: as in `load_npz`.

    Returns:
      the dense variables.

    Raises:
      ValueError: for another name, or a file that is damaged or no such file; says why.
      OSError: if it cannot be read.

    Example:
      >>> load_variables("weights.pt")
      Traceback (most recent call last):
      ...
      ValueError: weights.pt: variables are read from .lepton, .safetensors, .npz or an orbax folder; convert it to one of them.
    """
    suffix, is_folder = Path(path).suffix, os.path.isdir(path)
    if not is_folder and suffix not in _READERS:
        names = ", ".join(_READERS)
        raise ValueError(f"{os.fspath(path)}: variables are read from {names} or an orbax folder; convert it to one of them.")
    found = load_orbax(path) if is_folder else _READERS[suffix](path)
    if isinstance(found, dict) and {"params", "opt_state"} <= found.keys() <= _TRAIN_STATE | {"step", "key"}:
        found = {"params": found["params"], **found.get("model_state", {})}
    return found if template is None else fit_template(to_named(found)[0], template, path)


@checked
def save_variables(path: str | os.PathLike[str], tree: PyTree) -> int:
    """Write variables as safetensors or npz, as the name says.

    Returns:
      how many arrays they were.

    Raises:
      ValueError: for another name, or leaves that the format cannot hold.

    Example:
      >>> save_variables("weights.pt", {})
      Traceback (most recent call last):
      ...
      ValueError: weights.pt: variables are written to .safetensors or .npz; choose one of them.
    """
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ValueError(f"{os.fspath(path)}: variables are written to {' or '.join(_WRITERS)}; choose one of them.")
    _WRITERS[suffix](path, tree)
    return len(to_named(tree)[0])
