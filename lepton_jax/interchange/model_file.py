"""A model from a file or folder, of whatever kind."""

import dataclasses
import importlib
import os
from pathlib import Path

from lepton_jax.artifact import load
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.simple.model import Applied, Model

_FOLDER = "a folder"
_READERS = {
    ".onnx": ("onnx", "from_onnx"),
    ".keras": ("keras_file", "load_keras"),
    ".h5": ("keras_file", "load_keras"),
    ".hdf5": ("keras_file", "load_keras"),
    _FOLDER: ("pretrained", "from_pretrained"),
}
"""By suffix: the module and the function that read it; imported when they are needed."""
_PICKLED = {".bin", ".pt", ".pth", ".jit", ".pkl", ".pickle", ".ckpt", ".joblib"}


@checked
def load_model(path: str | os.PathLike[str], *, lowering: bool = True) -> Model:
    """Read a model, without the model's code. What it is shows in its name:

    - ``.onnx``: of any framework, a function with a derivative, see `lepton_jax.interchange.from_onnx`;
    - ``.keras``, ``.h5``: of Keras 3, see `lepton_jax.interchange.from_keras`; nothing that the file brings along is run;
    - a folder: a published language model in safetensors, see `lepton_jax.interchange.from_pretrained`;
    - anything else: a `.lepton` file. Techniques that need no gradient work on it; it can be a teacher. A program has no
      derivative, so it cannot be trained.

    Args:
      path: the file or folder.
      lowering: call it with what XLA on CPU is slow at in other forms, as `Model` does.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file, or a pickled one; says what, where and what to do.
      ImportError: for a kind of file that needs a package which is not installed; says how to.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Model(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}).save(f"{folder}/m.lepton", jnp.ones((1, 2)))
      ...     model = load_model(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist()
      [[3.0, 4.0]]
    """
    kind = _FOLDER if os.path.isdir(path) else Path(path).suffix.lower()
    if kind in _PICKLED:
        raise ArtifactError(
            f"{os.fspath(path)}: a pickled file can run any program when it is read, so it is not read. Where it comes from, "
            "write its weights as safetensors (a language model: model.save_pretrained(folder)) or all of it as ONNX "
            "(torch.onnx.export)."
        )
    if kind in _READERS:
        module, reader = _READERS[kind]
        model = getattr(importlib.import_module(f"lepton_jax.interchange.{module}"), reader)(path)
        return model if lowering else dataclasses.replace(model, lowering=False)
    artifact = load(path)
    recipe = artifact.manifest.get("recipe", {})
    applied = recipe.get("applied", []) if isinstance(recipe, dict) else []
    texts = tuple(Applied(str(text)) for text in applied) if isinstance(applied, list) else ()
    return Model(artifact.apply, artifact.packed, artifact.example_inputs, texts, lowering)
