"""From a function and its variables to the bytes of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx

from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.packed import is_packed
from lepton_jax.core.paths import path_str
from lepton_jax.deploy.to_onnx import fusions
from lepton_jax.deploy.to_onnx.exporter import Exporter
from lepton_jax.deploy.to_onnx.rules import RULES
from lepton_jax.deploy.to_onnx.rules.loops import info
from lepton_jax.deploy.to_onnx.tensors import Tensor
from lepton_jax.graph.trace import Traced
from lepton_jax.leaves.qarray import Words

_LARGEST = 2**31 - 1


def entering(variables: Any) -> list[Any]:
    """The leaves of variables as the exporter takes them: arrays, and packed leaves in the form in which they run."""
    leaves = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_packed)[0]
    return [_entering(leaf, path_str(key_path)) for key_path, leaf in leaves]


def _entering(leaf: Any, path: str) -> Any:
    if not is_packed(leaf):
        return leaf if is_key(leaf) else np.asarray(leaf)
    form = leaf.native(path)
    if form is None:
        return np.asarray(leaf.dense())
    return jax.tree.map(lambda part: part.opened() if isinstance(part, Words) else part, form, is_leaf=_are_words)


def _are_words(part: Any) -> bool:
    return isinstance(part, Words)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a random key."""
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def model_of(
    traced: Traced,
    variables: Sequence[Any],
    *,
    name: str,
    exporter: Callable[..., Exporter] = Exporter,
    facts: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """Write a graph.

    Args:
      traced: of the function, with shapes of inputs of which axes may be symbolic.
      variables: values of the graph's first inputs, see `entering`.
      name: of the function that asks, for errors.
      exporter: makes the exporter, ``exporter(traced, rules)``.
      facts: what the file says about itself.

    Raises:
      ValueError: with all operations that have no form in ONNX, and where they are.
    """
    to = exporter(traced, RULES, fusions.find(traced))
    given, infos = [], []
    for index, aval in enumerate(traced.in_avals[len(variables) :]):
        tensor = Tensor(f"input_{index}", tuple(aval.shape), np.dtype(aval.dtype))
        infos.append(info(tensor.name, tensor.shape, tensor.dtype))
        to.file.known(tensor.shape, tensor.name)
        given.append(tensor)
    outs = to.evaluate(traced.jaxpr, traced.consts, [*variables, *given])
    if to.missing:
        lines = [f"{what} at {', '.join(dict.fromkeys(places))}" for what, places in to.missing.items()]
        raise ValueError(f"{name}: these operations of {traced.name} have no form in ONNX: {'; '.join(lines)}.")
    out_infos = []
    for index, (out, aval) in enumerate(zip(outs, traced.out_avals)):
        to.file.finish(to.name_of(out), f"output_{index}")
        out_infos.append(info(f"output_{index}", aval.shape, aval.dtype))
    for number, (name, shape) in enumerate(to.shown()):
        to.file.finish(name, f"codes_{number}")
        out_infos.append(info(f"codes_{number}", shape, np.uint8))
    return to.file.model(infos, out_infos, facts or {})


def bytes_of(model: onnx.ModelProto, name: str) -> bytes:
    """The bytes of a model that the checker, with full inference of shapes, finds whole.

    Raises:
      ArtifactError: if it is too large, or not whole.
    """
    if model.ByteSize() > _LARGEST:
        raise ArtifactError(f"{name}: the file would have {model.ByteSize()} bytes; ONNX allows 2 GiB. Pack the weights.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever the checker raises
        raise ArtifactError(f"{name}: what was written is no valid ONNX file: {one_line(error)}") from error
    return model.SerializeToString(deterministic=True)
