"""Names of leaves: one path syntax for Linen dicts, `nnx.State`, tuples and packed leaves.

A path joins the keys from the root with '/': ``'Dense_0/kernel'``. The attribute ``value`` is transparent, because it is
how a container that merely wraps an array (an `nnx.Variable`) names its content: ``nnx`` and Linen leaves have like names.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Path, PyTree, Select

_TRANSPARENT = "value"


def path_str(key_path: tuple[Any, ...]) -> Path:
    """Join a jax key path with '/'.

    Example:
      >>> [(key_path, _)] = jax.tree_util.tree_flatten_with_path({"a": [1.0]})[0]
      >>> path_str(key_path)
      'a/0'
    """
    keys = [jax.tree_util.keystr((key,), simple=True) for key in key_path if getattr(key, "name", None) != _TRANSPARENT]
    return "/".join(keys)


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[Path, Any]:
    """Return ``{path: leaf}`` in the tree's own order.

    Raises:
      ValueError: if two leaves have the same path, as in ``{"a/b": 1, "a": {"b": 2}}``.

    Example:
      >>> flatten({"b": 2, "a": {"kernel": 1}})
      {'a/kernel': 1, 'b': 2}
    """
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
    leaves = {path_str(key_path): leaf for key_path, leaf in entries}
    if len(leaves) < len(entries):
        counts = Counter(path_str(key_path) for key_path, _ in entries)
        double = ", ".join(path for path, count in counts.items() if count > 1)
        raise ValueError(f"several leaves have the same path: {double}. Rename keys that contain '/'.")
    return leaves


def replace(tree: PyTree, leaves: Mapping[Path, Any], is_leaf: Callable[[Any], bool] | None = None) -> PyTree:
    """Return `tree` with the leaves at the given paths exchanged; paths that the tree lacks are passed over.

    A replacement may itself be a tree: that is how a leaf becomes a packed leaf.

    Example:
      >>> replace({"a": 1, "b": 2}, {"b": 3, "c": 4})
      {'a': 1, 'b': 3}
    """
    return jax.tree_util.tree_map_with_path(lambda kp, leaf: leaves.get(path_str(kp), leaf), tree, is_leaf=is_leaf)


def is_floating(leaf: Any) -> bool:
    """True for arrays of a floating dtype (bfloat16 and fp8 included)."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


_NO_WEIGHTS = frozenset(
    {"bias", "biases", "scale", "offset", "gain", "gamma", "beta", "mean", "var", "variance", "std", "average", "averages"}
    | {"ema", "counter", "cls", "pos", "posemb", "position", "positional"}
)
"""Words in the name of a leaf that is no weight, whatever its shape."""
_WEIGHTS = frozenset(["kernel", "kernels", "k", "weight", "weights", "w", "embedding", "embeddings", "u", "v"])
"""Words in the name of a leaf that is one though it has only one long axis."""
_SHORT_NO_WEIGHTS = frozenset({"b", "hidden", "token", "state"})
"""Words in the name of a leaf (1, C) that is no matrix: a bias, a running sum."""


def matrices(path: Path, leaf: Any) -> bool:
    """Select kernels and embeddings by shape and name: floating leaves of two axes or more. The usual default.

    Not what is called bias, scale, offset, mean, var, average, pos_embedding, cls and the like, and not what has one long axis
    only, (1, 1, 1, C), unless it is called kernel, weight or so, or is the matrix of one input or output, (1, C). Names and
    shapes can mislead: where there is a function, use `lepton_jax.graph.weights`, which looks at what it does with each leaf.

    Example:
      >>> [matrices(path, jnp.ones((4, 8))) for path in ("query/kernel", "query/bias", "norm/scale", "w")]
      [True, False, False, True]
      >>> matrices("norm/average", jnp.ones((1, 1, 8))), matrices("w", jnp.ones((1, 8)))
      (False, True)
    """
    if not is_floating(leaf) or leaf.ndim < 2:
        return False
    words = [set(re.split("[^a-z]+", re.sub("([a-z])([A-Z])", r"\1_\2", name).lower())) for name in path.split("/")]
    if words[-1] & _NO_WEIGHTS:
        return False
    if sum(size != 1 for size in leaf.shape) > 1 or any(own & _WEIGHTS for own in words):
        return True
    return leaf.ndim == 2 and not words[-1] & _SHORT_NO_WEIGHTS


def floating(path: Path, leaf: Any) -> bool:
    """Select every floating leaf."""
    return is_floating(leaf)


def check_select(name: str, pattern: Any) -> None:
    """Raise unless `pattern` can say which leaves: globs over paths, or a predicate.

    Args:
      name: of the setting, for the error.
      pattern: what was given.

    Raises:
      TypeError: for anything else.

    Example:
      >>> check_select("prune: select", 3)
      Traceback (most recent call last):
      ...
      TypeError: prune: select must be a glob over paths such as '*/kernel', several in a tuple, or a predicate (path, leaf) ->
      bool; got 3.
    """
    several = (pattern,) if isinstance(pattern, str) else pattern
    globs = isinstance(several, tuple | list) and all(isinstance(one, str) for one in several)
    if not globs and not callable(pattern):
        raise TypeError(
            f"{name} must be a glob over paths such as '*/kernel', several in a tuple, or a predicate (path, leaf) -> bool; "
            f"got {pattern!r}."
        )


def matches(pattern: Select, path: Path, leaf: Any, among: Container[Path] = ()) -> bool:
    """Whether `pattern` selects this leaf. A glob's ``*`` crosses '/'; a path is itself first, whatever letters it has.

    Args:
      pattern: glob pattern(s) over paths, or a predicate ``(path, leaf) -> bool``.
      path: of the leaf.
      leaf: for the predicate.
      among: the paths there are; a pattern that is one of them matches that one alone.

    Example:
      >>> matches("*/kernel", "Dense_0/kernel", None), matches(("a*", "b*"), "c", None)
      (True, False)
      >>> [matches("w[1]", path, None, ("w1", "w[1]")) for path in ("w1", "w[1]")]
      [False, True]
    """
    if callable(pattern):
        return bool(pattern(path, leaf))
    check_select("select", pattern)
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    return any(path == p or (p not in among and fnmatchcase(path, p)) for p in patterns)


def select(tree: PyTree, pattern: Select, is_leaf: Callable[[Any], bool] | None = None) -> dict[Path, Any]:
    """Return the selected floating leaves as ``{path: leaf}``.

    Args:
      tree: any pytree.
      pattern: glob pattern(s) over paths, or a predicate ``(path, leaf) -> bool``. A pattern that is the path of a leaf selects
        that leaf alone: ``layer[0]/kernel`` is a path first, and a glob only where there is no such leaf.
      is_leaf: as in `jax.tree.flatten`.

    Raises:
      TypeError: for a pattern that is neither.
      ValueError: if a pattern matches no floating leaf; the message lists the paths there are.

    Example:
      >>> list(select({"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "*/kernel"))
      ['Dense_0/kernel']
    """
    check_select("select", pattern)
    there = flatten(tree, is_leaf)
    leaves = {path: leaf for path, leaf in there.items() if is_floating(leaf)}
    for one in pattern if isinstance(pattern, (tuple, list)) and pattern else (pattern,):
        if not any(matches(one, path, leaf, there) for path, leaf in leaves.items()):
            wanted = getattr(one, "__name__", one)
            raise ValueError(
                f"select={wanted!r} matches no floating leaf. The floating leaves are: {', '.join(leaves) or 'none'}. "
                "Write a glob over these paths, e.g. '*/kernel'."
            )
    return {path: leaf for path, leaf in leaves.items() if matches(pattern, path, leaf, there)}
