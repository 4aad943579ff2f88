"""From a function to the bytes of a LiteRT file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lepton_jax.artifact.inputs import Axes, named
from lepton_jax.artifact.slices import with_slices
from lepton_jax.core.errors import one_line
from lepton_jax.core.packed import Coded, is_packed
from lepton_jax.deploy.litert import open_file
from lepton_jax.deploy.models import Deployable, shapes_of
from lepton_jax.deploy.to_litert.bounded import bounded
from lepton_jax.deploy.to_litert.points import TARGET, Point, Points, operations
from lepton_jax.deploy.to_litert.rewritten import rewritten
from lepton_jax.formats import Uniform
from lepton_jax.leaves.qarray import QArray
from lepton_jax.native import packed

SIGNATURE = "serving_default"
_WRITTEN = ("builtin.", "func.", "arith.constant", "tfl.", "quant.")
"""Operations that the converter writes begin so."""


def converter(name: str) -> tuple[Any, Any]:
    """The converter and its bindings of MLIR.

    Raises:
      ImportError: if it is not there, with the command that installs it.
    """
    try:
        from litert_converter import converter_api_ext
        from litert_converter.mlir import ir, passmanager
    except ImportError as error:
        raise ImportError(
            f"{name}: litert_converter is not installed: pip install --no-deps litert-converter (it asks for an old "
            "typing-extensions that it does not use), and pip install 'lepton-jax[litert]' to run its files."
        ) from error
    return converter_api_ext, (ir, passmanager)


def file_of(model: Deployable, axes: Axes | None, constraints: Sequence[str], *, name: str) -> bytes:
    """Write a model as it is: codes with a scale for each output, or for all, stay codes of a byte; factors are thin products.

    Args:
      model: what is written.
      axes: which axes may have any length; None: none.
      constraints: on the lengths.
      name: of the function that asks, for errors.

    Raises:
      As `bytes_of`.
    """
    points = Points()
    leaves, tree = jax.tree.flatten(model.variables, is_leaf=is_packed)
    run = packed(model.apply) if any(map(is_packed, leaves)) else model.apply
    shapes = named(shapes_of(model.example), axes or {}, constraints)[0]

    @with_slices
    def function(*inputs: Any) -> Any:
        return run(jax.tree.unflatten(tree, [_entering(leaf, points) for leaf in leaves]), *inputs)

    return bytes_of(function, shapes, points, name=name)


def _entering(leaf: Any, points: Points) -> Any:
    """A variable as a constant of the program, its codes marked."""
    if not is_packed(leaf):
        return leaf
    if not isinstance(leaf, Coded):
        return jax.tree.map(
            lambda part: _entering(part, points) if is_packed(part) else part,
            leaf,
            is_leaf=lambda one: one is not leaf and is_packed(one),
        )
    with jax.ensure_compile_time_eval():
        dense = leaf.unpack()
    point = _point_of(leaf) if dense.dtype == jnp.float32 else None
    return dense if point is None else points.mark(dense, point)


def _point_of(leaf: Any) -> Point | None:
    """How the codes of a leaf are read; None for other formats than whole numbers with scales along one axis."""
    if not isinstance(leaf, QArray) or not isinstance(leaf.format, Uniform):
        return None
    if not leaf.format.symmetric or leaf.format.bits > 8 or leaf.format.group_size is not None:
        return None
    scale = np.asarray(leaf.scale, np.float32)
    along = [axis for axis, length in enumerate(scale.shape) if length > 1]
    if len(along) > 1 or scale.ndim not in (0, leaf.ndim):
        return None
    return Point(scale, 0, along[0] if along else None)


def bytes_of(function: Callable[..., Any], shapes: Sequence[Any], points: Points, *, name: str) -> bytes:
    """Write a function of inputs alone.

    Args:
      function: of inputs, in which `points` marks what is rounded.
      shapes: trees of its inputs' shapes and dtypes.
      points: its marks.
      name: of the function that asks, for errors.

    Raises:
      ImportError: without the converter.
      ValueError: for operations that LiteRT has not, with what the converter says of them.
    """
    api, (ir, passmanager) = converter(name)
    checks = [export.DisabledSafetyCheck.custom_call(TARGET)]
    made = export.export(jax.jit(rewritten(function), keep_unused=True), platforms=["cpu"], disabled_checks=checks)(*shapes)
    inputs = [f"input_{i}" for i in range(len(made.in_avals))]
    outputs = [f"output_{i}" for i in range(len(made.out_avals))]
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context, _silent():
        module = ir.Module.parse(made.mlir_module())
        points.written(module, ir)
        bounded(module, ir)
        main = next(op for op in module.body.operations if ir.StringAttr(op.attributes["sym_name"]).value == "main")
        api.set_signature(main, SIGNATURE, inputs, outputs)
        settings = api.ConvertToTFLConfig()
        settings.model_origin_framework, settings.qdq_conversion_mode = "JAX", "STATIC"
        try:
            api.run_convert_to_tfl_passes(module, passmanager.PassManager(), settings)
            found = bytes(api.export_flatbuffer_to_bytes(module.operation))
            open_file(found, name=name)
        except Exception as error:  # whatever the converter raises
            left = sorted(
                {op.name for op in operations(module.operation) if not op.name.startswith(_WRITTEN) or op.name == "tfl.while"}
            )
            named = f", which are of operations that it has no form of ({', '.join(left)})" if left else ""
            raise ValueError(f"{name}: LiteRT does not take this model{named}: {one_line(error)[:300]}") from error
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the converter prints on its way from the terminal."""
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
