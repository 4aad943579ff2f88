"""A published language model from its folder: config.json and safetensors, in one file or several."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, collect
from lepton_jax.core.files import open_file
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.interchange.decoder_config import transformer_of
from lepton_jax.interchange.decoder_names import Place, places
from lepton_jax.interchange.names import nested
from lepton_jax.interchange.safetensors_file import read_arrays, read_shapes
from lepton_jax.models.transformer import Transformer
from lepton_jax.simple.model import Model

_CONFIG, _INDEX, _WHOLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_EXAMPLE = 8  # tokens
# Constants that older files hold beside the weights: computed anew from the config.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@checked
def from_pretrained(folder: str | os.PathLike[str], *, scan: bool = False, dtype: Any = jnp.float32) -> Model:
    """Read a published language model of the types llama, mistral, qwen2, qwen3 or gemma.

    The folder holds ``config.json`` and ``model.safetensors``, or several such files and ``model.safetensors.index.json``. All
    names, shapes and dtypes are held against what the config asks for before any weight is read. Kernels are transposed from
    ``[out, in]`` to ``[in, out]``.

    The model maps tokens ``[B, L]`` to logits ``[B, L, vocabulary]``; with a cache it goes on from those before, see
    `lepton_jax.models.Transformer` and `lepton_jax.models.generate`. It has a derivative, and names that can be read
    (``params/Block_0/query/kernel``).

    Args:
      folder: where they are.
      scan: whether the blocks become one, with weights stacked along a first axis (``params/blocks/query/kernel``).
      dtype: of the weights, and thereby of the computation; None: as in the files.

    Raises:
      ArtifactError: for a damaged folder, another kind of model, and names, shapes or settings that do not fit; names all.
      OSError: if a file cannot be read.

    Example:
      >>> from_pretrained("absent")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent/config.json'
    """
    where = os.fspath(folder)
    module = transformer_of(_object(where, _CONFIG), os.path.join(where, _CONFIG), scan)
    wanted = places(module)
    files = _files(where)
    _check(where, wanted, {file: read_shapes(os.path.join(where, file)) for file in files}, module)
    leaves: dict[str, Any] = {}
    tied: dict[str, np.ndarray] = {}
    for file in files:
        for name, array in read_arrays(os.path.join(where, file))[0].items():
            if name in wanted:
                _put(leaves, wanted[name], array if dtype is None else array.astype(dtype), module)
            if module.tied and name in ("lm_head.weight", "model.embed_tokens.weight"):
                tied[name] = array
    bits = [array.reshape(-1).view(np.uint8) for array in tied.values()]
    if not all(np.array_equal(bits[0], one) for one in bits[1:]):
        raise ArtifactError(f"{where}: the config ties lm_head.weight to the embedding, and the file has another. Remove one.")
    tree = nested({f"params/{path}": _whole(leaf) for path, leaf in leaves.items()})
    return Model(module.apply, tree, (jnp.zeros((1, _EXAMPLE), jnp.int32),))


def _object(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    if os.path.isdir(folder) and not os.path.exists(path):
        raise ArtifactError(f"{folder}: has no {name}; give the folder of a whole language model.")
    with open_file(path) as file:
        return parse_json(file.read(), path)


def _files(folder: str) -> list[str]:
    """The names of the files that hold the weights.

    Raises:
      ArtifactError: if there are none that are safe to read, or the index leads elsewhere.
    """
    there = set(os.listdir(folder))
    if _WHOLE in there:
        return [_WHOLE]
    if _INDEX not in there:
        if any(name.endswith((".bin", ".pt", ".pth")) for name in there):
            raise ArtifactError(
                f"{folder}: its weights are pickled, which can run any program; they are not read. Write them as safetensors "
                "where they come from: model.save_pretrained(folder)."
            )
        raise ArtifactError(f"{folder}: has neither {_WHOLE} nor {_INDEX}; give the folder of a whole model.")
    index = _object(folder, _INDEX)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ArtifactError(f"{folder}/{_INDEX}: weight_map must give the file of every tensor.")
    files = sorted(set(names.values()))
    with collect(f"{folder}/{_INDEX}: weight_map must name safetensors files in the same folder", ArtifactError) as problems:
        for file in files:
            if os.path.basename(file) != file or "\\" in file or ":" in file or not file.endswith(".safetensors"):
                problems.append(f"{shown(file)}: leads elsewhere, or is of another kind")
            elif file not in there:
                problems.append(f"{shown(file)}: missing")
    with collect(f"{folder}/{_INDEX}: its files hold other tensors than it says", ArtifactError) as problems:
        held = {name: file for file in files for name in read_shapes(os.path.join(folder, file))}
        for name in names.keys() | held.keys():
            if names.get(name) != held.get(name):
                said, has = (shown(where.get(name, "nowhere")) for where in (names, held))
                problems.append(f"{shown(name)}: is in {has}, the index says {said}")
        problems.sort()
    return files


def _check(
    folder: str, wanted: Mapping[str, Place], files: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]], module: Transformer
) -> None:
    """Raise unless the files hold exactly the tensors that are wanted."""
    heading = f"{folder}: its tensors are not those of its config"
    seen: dict[str, jax.ShapeDtypeStruct] = {}
    with collect(heading, ArtifactError) as problems:
        for file, tensors in files.items():
            problems.extend(
                f"{shown(name)}: stands in two files, one of them {shown(file)}" for name in tensors if name in seen
            )
            seen.update(tensors)
        problems.extend(f"{name}: missing" for name in wanted if name not in seen)
        for name, tensor in seen.items():
            shape = wanted[name].shape if name in wanted else _other(name, module)
            if shape is None:
                problems.append(f"{shown(name)}: {tensor.dtype}{list(tensor.shape)} that the config has no place for")
            elif shape and tensor.shape != shape:
                problems.append(f"{name}: needs {list(shape)}, the file has {list(tensor.shape)}")
            elif not paths.is_floating(tensor):
                problems.append(f"{name}: must be floating; the file has {tensor.dtype}. Give the float model.")


def _other(name: str, module: Transformer) -> tuple[int, ...] | None:
    """The shape of a tensor that may stand in a folder and is not a leaf: () for any."""
    if _COMPUTED.fullmatch(name):
        return ()
    return (module.vocabulary, module.width) if module.tied and name == "lm_head.weight" else None


def _put(leaves: dict[str, Any], place: Place, array: np.ndarray, module: Transformer) -> None:
    """Put a tensor where it belongs: into a leaf, or into its layer of a stacked one, written once."""
    value = array.T if place.turned else array
    if place.layer is None:
        leaves[place.path] = value
    elif not module.scan:
        leaves[f"Block_{place.layer}/{place.path}"] = value
    else:
        path = f"blocks/{place.path}"
        if path not in leaves:
            leaves[path] = np.empty((module.depth, *value.shape), value.dtype)
        if leaves[path].dtype != value.dtype:
            raise ArtifactError(f"{path}: its layers are {leaves[path].dtype} and {value.dtype}; give one dtype.")
        leaves[path][place.layer] = value


def _whole(leaf: Any) -> jax.Array:
    return jnp.asarray(np.ascontiguousarray(leaf))
