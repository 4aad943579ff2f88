"""A model from a file, of whatever kind."""

import os
from pathlib import Path

from lepton_jax.artifact import load
from lepton_jax.core.arguments import checked
from lepton_jax.simple.model import Applied, Model


@checked
def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model from a file, without the model's code.

    ======== ==================================================================================================================
    suffix   what it is
    ======== ==================================================================================================================
    .onnx    of any framework: a function with a derivative, see `lepton_jax.interchange.from_onnx`
    other    a `.lepton` file: techniques that need no gradient work on it; it can be a teacher. A program has no derivative, so
             it cannot be trained.
    ======== ==================================================================================================================

    Args:
      path: the file.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file; says what and where.
      ImportError: for a kind of file that needs a package which is not installed; says how to.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Model(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}).save(f"{folder}/m.lepton", jnp.ones((1, 2)))
      ...     model = load_model(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist()
      [[3.0, 4.0]]
    """
    if Path(path).suffix.lower() == ".onnx":
        from lepton_jax.interchange.onnx import from_onnx  # a package that not everybody needs

        return from_onnx(path)
    artifact = load(path)
    recipe = artifact.manifest.get("recipe", {})
    applied = recipe.get("applied", []) if isinstance(recipe, dict) else []
    texts = tuple(Applied(str(text)) for text in applied) if isinstance(applied, list) else ()
    return Model(artifact.apply, artifact.packed, artifact.example_inputs, texts)
