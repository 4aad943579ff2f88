"""A tree as named arrays and back: what the files of others can hold, and the structure beside it.

Names are paths: ``params/Dense_0/kernel``. The structure (what is a list, a tuple, a Python number, a random key) is a JSON
text, which a file keeps in its own way; a file without one comes back as nested dictionaries.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.artifact import structure
from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import is_packed, unpack
from lepton_jax.core.typing import PyTree

_ROOT = "array"  # the name of a tree that is one leaf
_NUMBERS = {"bool": bool, "int": int, "float": float, "complex": complex}


def to_named(tree: PyTree) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a tree by name, and its structure.

    Args:
      tree: any tree of arrays, numbers, random keys and packed leaves; the latter become dense.

    Returns:
      ``({name: array}, structure)``; the arrays are contiguous.

    Raises:
      ValueError: for leaves that are no arrays, or two of one name.

    Example:
      >>> arrays, text = to_named({"a": [np.ones(2), 3]})
      >>> list(arrays), text
      (['a/0', 'a/1'], '{"a":[0,":a/0","int:a/1"]}')
    """
    arrays: dict[str, np.ndarray] = {}
    with collect("only trees of arrays under different names can be saved") as problems:

        def leaf_text(path: str, leaf: Any) -> str:
            name = path or _ROOT
            if name in arrays:
                problems.append(f"{name}: two leaves of this name; rename keys that contain '/'")
            array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            if array.dtype.hasobject or array.dtype.kind in "SU":
                problems.append(f"{name}: must be an array or a number; got {type(leaf).__name__}")
            arrays[name] = np.require(array, requirements="C")
            return f"{_kind(leaf)}:{name}"

        text = json.dumps(structure.describe(unpack(tree), leaf_text), separators=(",", ":"), ensure_ascii=False)
    return arrays, text


def as_tree(
    arrays: Mapping[str, np.ndarray], text: str | None, template: PyTree | None, where: str | os.PathLike[str]
) -> PyTree:
    """Return the tree of named arrays: that of `fit_template` for a template, else that of `from_named`."""
    return from_named(arrays, text) if template is None else fit_template(arrays, template, where)


def from_named(arrays: Mapping[str, np.ndarray], text: str | None) -> PyTree:
    """Return the tree of `to_named`; without a structure, dictionaries nested by the '/' of the names.

    Args:
      arrays: by name.
      text: the structure, or None.

    Raises:
      ValueError: if the structure does not fit the arrays.

    Example:
      >>> from_named(*to_named({"a": (1, True)})), from_named({"a/b": np.ones(1)}, None)
      ({'a': (1, True)}, {'a': {'b': array([1.])}})
    """
    if text is None:
        return nested(arrays)
    try:
        node = json.loads(text)
        wanted = [leaf.partition(":") for _, leaf in structure.leaf_texts(node)]
        with collect("the file's structure does not fit its arrays") as problems:
            problems.extend(f"{name}: missing" for _, _, name in wanted if name not in arrays)
        return structure.rebuild(node, iter([_restored(kind, arrays[name]) for kind, _, name in wanted]))
    except (json.JSONDecodeError, RecursionError, TypeError) as error:
        raise ValueError(f"the file's structure is damaged: {error}") from error


def fit_template(arrays: Mapping[str, np.ndarray], template: PyTree, where: str | os.PathLike[str]) -> PyTree:
    """Put named arrays in the places of a template's leaves.

    Args:
      arrays: by name.
      template: any tree; only names, shapes and dtypes are read, so `jax.ShapeDtypeStruct` leaves will do.
      where: what the arrays come from, for the message.

    Returns:
      a tree of the template's structure with NumPy leaves (keys and Python numbers where the template has them); dense arrays
      where it has packed leaves.

    Raises:
      ValueError: with every name that is missing, unknown, or of another shape or dtype.

    Example:
      >>> fit_template({"a": np.ones(2)}, {"a": np.zeros(3), "b": np.zeros(1)}, "w.npz")
      Traceback (most recent call last):
      ...
      ValueError: w.npz does not hold the variables that were asked for; it must have their names, shapes and dtypes:
        a: needs float64[3], the file has float64[2]
        b: needs float64[1], not in the file
    """
    leaves = paths.flatten(template, is_packed)
    wanted = {path or _ROOT: leaf for path, leaf in leaves.items()}
    heading = f"{os.fspath(where)} does not hold the variables that were asked for; it must have their names, shapes and dtypes"
    with collect(heading) as problems:
        for name, leaf in wanted.items():
            needed, found = _described(leaf), _described(arrays[name]) if name in arrays else None
            if found is None:
                problems.append(f"{name}: needs {needed}, not in the file")
            elif needed != found:
                problems.append(f"{name}: needs {needed}, the file has {found}")
        unknown = {name: array for name, array in arrays.items() if name not in wanted}
        problems.extend(f"{name}: {_described(array)} in the file, not asked for" for name, array in unknown.items())
    return paths.replace(template, {path: _restored(_kind(x), arrays[path or _ROOT]) for path, x in leaves.items()}, is_packed)


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return dictionaries nested by the '/' of the names; as they are where one name goes on from another.

    Example:
      >>> nested({"a/b": 1, "a/c": 2}), nested({"a": 1, "a/b": 2})
      ({'a': {'b': 1, 'c': 2}}, {'a': 1, 'a/b': 2})
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        node, keys = tree, name.split("/")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                return dict(arrays)
        if keys[-1] in node:
            return dict(arrays)
        node[keys[-1]] = array
    return tree


def named_dtype(name: str) -> np.dtype:
    """Return the dtype of a name, those of `ml_dtypes` included.

    Example:
      >>> named_dtype("bfloat16").itemsize
      2
    """
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """What a leaf is, if it is no array."""
    if _is_key(leaf):
        return f"key {jax.random.key_impl(leaf)}"
    return type(leaf).__name__ if type(leaf) in _NUMBERS.values() else ""


def _restored(kind: str, array: np.ndarray) -> Any:
    """The leaf of this kind that became the array."""
    if kind.startswith("key "):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind[4:])
    if not kind:
        return array
    if kind not in _NUMBERS or array.shape:
        raise ValueError(f"the file's structure is damaged: {array.dtype}{list(array.shape)} cannot be {kind!r}")
    return _NUMBERS[kind](array[()])


def _described(leaf: Any) -> str:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
