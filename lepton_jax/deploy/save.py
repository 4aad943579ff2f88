"""A model as a file that other engines run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from lepton_jax.artifact.inputs import Axes
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_option
from lepton_jax.core.extras import import_extra
from lepton_jax.core.files import write_atomic
from lepton_jax.deploy.models import deployable, folded, traced_for


@checked_but("model", "example")
def save(
    model: Any,
    path: str | os.PathLike[str],
    *example: Any,
    axes: Axes | None = None,
    constraints: Sequence[str] = (),
    activations: Literal["float32", "int8"] = "float32",
    fold: bool = True,
) -> None:
    """Write a model as a file of ONNX or LiteRT, as it is: with float or packed weights.

    Inputs are called ``input_0, input_1, ...`` and outputs ``output_0, output_1, ...``, in the order of `jax.tree.leaves`. What
    depends on variables alone is computed now, and batch norms are folded into float weights. Packed weights stay small: codes
    with their scales (those of 4 bits in groups are multiplied as codes), indices with their table, factors as thin
    products; the numbers are those of ``unpack(variables)`` within rounding.

    Args:
      model: a `lepton_jax.Model`, or a loaded `.lepton` file.
      path: of the file, ``.onnx`` or ``.tflite``; replaced in one step if it is there, and left as it is if anything fails.
      *example: inputs, or their shapes, if the model has none.
      axes: which axes may have any length, and their names, as in `lepton_jax.save`; None: the batch, where the model can be
        traced so. LiteRT's files take the examples' shapes, since it fuses nothing where lengths are open, unless axes are
        named.
      constraints: on the named lengths, such as ``"time <= 512"``.
      activations: what meets weights of four bits in groups: as it is, or rounded to eight bits by the engine, which is twice
        as fast and less exact. Of ONNX.
      fold: whether batch norms are folded into float weights, and what depends on variables alone is computed now.

    Raises:
      ImportError: if onnx, or LiteRT's converter, is not installed; says how to.
      ValueError: for operations that have no form in ONNX, with all of them and where they are; for another kind of file.
      ArtifactError: if the file cannot be written.

    Example:
      >>> import tempfile, jax.numpy as jnp, numpy as np, onnxruntime
      >>> from lepton_jax import Model
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, (jnp.ones((1, 2)),))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(model, f"{folder}/m.onnx")
      ...     session = onnxruntime.InferenceSession(f"{folder}/m.onnx")
      >>> session.run(None, {"input_0": np.array([[3, 4], [5, 6]], np.float32)})[0].tolist()
      [[3.0, 4.0], [5.0, 6.0]]
    """
    suffix = os.path.splitext(os.fspath(path))[1]
    if suffix not in (".onnx", ".tflite"):
        raise ValueError(f"deploy.save: path must end in .onnx or .tflite; got {os.fspath(path)!r}.")
    check_option("deploy.save: activations", activations, Literal["float32", "int8"])
    given = deployable("deploy.save", model, example)
    models = [folded(given), given] if fold else [given]
    if suffix == ".tflite":
        from lepton_jax.deploy.to_litert.write import file_of

        found, _ = traced_for(models, axes or {}, constraints)
        write_atomic(path, file_of(found, axes, constraints, name="deploy.save"))
        return
    import_extra("onnx", "deploy")
    from lepton_jax.deploy.to_onnx import write
    from lepton_jax.deploy.to_onnx.exporter import Exporter

    found, traced = traced_for(models, axes, constraints)
    exporter = partial(Exporter, rounds_activations=activations == "int8")
    made = write.model_of(traced, write.entering(found.variables), name="deploy.save", exporter=exporter)
    write_atomic(path, write.bytes_of(made, os.fspath(path)))
