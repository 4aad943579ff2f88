"""Keras's own files, ``.keras`` and ``.h5``, read without running anything that they bring along."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.files import open_file
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.limits import Allowance
from lepton_jax.interchange.keras_model import backend, from_keras
from lepton_jax.simple.model import Model

_SIZES = ("units", "filters", "output_dim", "input_dim", "key_dim", "value_dim", "num_heads")
"""Settings of layers that make a variable at least as long."""


def load_keras(path: str | os.PathLike[str]) -> Model:
    """Read a ``.keras`` or ``.h5`` file of a whole model, in Keras's safe mode.

    Raises:
      ArtifactError: for a file that is damaged, has no architecture, brings code along, or declares layers larger than itself.
      ImportError: as `lepton_jax.interchange.from_keras`.

    Example:
      >>> load_keras("absent.keras")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.keras'
    """
    name = os.fspath(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    keras = backend()
    try:
        config = _config_of_zip(name, size) if Path(path).suffix.lower() == ".keras" else _config_of_h5(name)
        _check_sizes(config, size, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Keras with newer packages
            return from_keras(keras.saving.load_model(name, compile=False, safe_mode=True))
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"{name}: Keras cannot read it safely: {one_line(error)}") from error


def _config_of_zip(name: str, size: int) -> dict[str, Any]:
    with zipfile.ZipFile(name) as archive:
        Allowance(size).memory(sum(entry.file_size for entry in archive.infolist()), name)
        names = archive.namelist()
        if "config.json" not in names:
            raise ArtifactError(f"{name}: has no config.json; give a file that model.save wrote.")
        return parse_json(archive.read("config.json"), f"{name}: config.json")


def _config_of_h5(name: str) -> dict[str, Any]:
    import h5py  # which comes with Keras

    with h5py.File(name, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        raise ArtifactError(
            f"{name}: holds weights and no architecture. Build the model in Keras, model.load_weights(path), then "
            "lepton_jax.interchange.from_keras(model); or save it whole, model.save('model.keras')."
        )
    return parse_json(text, f"{name}: model_config")


def _check_sizes(config: dict[str, Any], size: int, name: str) -> None:
    """Raise if a layer declares more units than the file has bytes: they cannot be in it."""
    todo: list[Any] = [config]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo.extend(node)
        elif isinstance(node, dict):
            todo.extend(node.values())
            wrong = {key: node[key] for key in _SIZES if type(node.get(key)) is int and node[key] > size}
            if wrong:
                raise ArtifactError(f"{name}: its {size} bytes cannot hold a layer of {json.dumps(wrong)}")
