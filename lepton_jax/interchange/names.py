"""A tree as named arrays and back: what the files of others can hold, and the structure beside it.

Names are paths: ``params/Dense_0/kernel``. The structure (what is a list, a tuple, a Python number, a random key) is a JSON
text, which a file keeps in its own way; a file without one comes back as nested dictionaries.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact import structure
from lepton_jax.core import paths
from lepton_jax.core.errors import ArtifactError, collect
from lepton_jax.core.foreign_text import printable, shown
from lepton_jax.core.packed import dense, is_packed
from lepton_jax.core.typing import PyTree

_CHUNK = 1 << 20
_ROOT = "array"  # the name of a tree that is one leaf
_KEYS = {"threefry2x32": (2,), "rbg": (4,), "unsafe_rbg": (4,)}  # and their words
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
                problems.append(f"{shown(name)}: two leaves of this name; rename keys that contain '/'")
            if _leads_elsewhere(name):
                problems.append(f"{shown(name)}: a name of a place outside, or with a character 0; rename the key")
            array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            if array.dtype.hasobject or array.dtype.kind in "SU":
                problems.append(f"{name}: must be an array or a number; got {type(leaf).__name__}")
            arrays[name] = np.require(array, requirements="C")
            return f"{_kind(leaf)}:{name}"

        text = json.dumps(structure.describe(dense(tree), leaf_text), separators=(",", ":"), ensure_ascii=False)
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
            problems.extend(f"{shown(name)}: missing" for _, _, name in wanted if name not in arrays)
        return structure.rebuild(node, iter([_restored(kind, arrays[name]) for kind, _, name in wanted]))
    except (json.JSONDecodeError, RecursionError, TypeError, OverflowError, AttributeError) as error:
        raise ArtifactError(f"the file's structure is damaged: {error}") from error


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
        problems.extend(f"{shown(name)}: {_described(array)} in the file, not asked for" for name, array in unknown.items())
    return paths.replace(template, {path: _restored(_kind(x), arrays[path or _ROOT]) for path, x in leaves.items()}, is_packed)


def _leads_elsewhere(name: str) -> bool:
    """Whether a program that unpacks an archive of this name might write to another place than it was told."""
    return "\0" in name or name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/")


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


def check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise an `ArtifactError` unless the flags among a file's arrays are 0 or 1, and no name has a character 0."""
    for name, array in arrays.items():
        if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise ArtifactError(f"{where}: {shown(name)}: a flag is neither 0 nor 1")
        if "\0" in name:
            raise ArtifactError(f"{where}: {shown(name)}: a name may have no character 0; rename it")


def fill(file: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Read an array's bytes into it.

    Args:
      file: where they come next.
      dtype, shape: of the array; the caller has made sure that the file may hold so much.
      where: what it is, for the message.

    Raises:
      ValueError: if the bytes end before.
    """
    array = np.empty(shape, dtype)
    flat: Any = array.reshape(-1).view(np.uint8)
    view, done = memoryview(flat), 0
    while done < len(view):
        count = file.readinto(view[done : done + _CHUNK])
        if not count:
            raise ValueError(f"{where} ends after {done} of {len(view)} bytes")
        done += count
    return array


@contextmanager
def foreign(what: str, kind: type[ValueError] = ArtifactError) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into an error of one kind, whose message begins by `what`.

    Example:
      >>> with foreign("w.npz is no npz file"):
      ...     raise RuntimeError("Bad magic number")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: w.npz is no npz file: Bad magic number
    """
    try:
        yield
    except Exception as error:
        raise kind(f"{what}: {printable(str(error)) or type(error).__name__}") from error


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
        if array.dtype != np.uint32 or array.shape[-1:] != _KEYS.get(kind[4:]):
            raise ValueError(f"the file's structure is damaged: {array.dtype}{list(array.shape)} is no {shown(kind, 40)}")
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
