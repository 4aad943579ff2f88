"""The shape of the tree in JSON: what holds what, down to the leaves' texts.

A mapping is an object; other nodes are lists that begin with a number: a list, a tuple, a mapping whose keys are not texts, or
the shape and the parts of a packed leaf, by its `Composite.node`. A node of another type (an `nnx.State`, a dataclass) is
stored as a mapping by its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.packed import Composite, is_coded, is_packed, kinds

_LIST, _TUPLE, _MAPPING = range(3)
_MAX_DEPTH = 64


def _key(entry: Any) -> Any:
    """The key itself: a text, or the integer of a numbered node."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            key = getattr(entry, attribute)
            return key if isinstance(key, int) and not isinstance(key, bool) else str(key)
    return str(entry)


def describe(tree: Any, leaf_text: Callable[[str, Any], str], path: str = "") -> Any:
    """Return the JSON of a tree.

    Args:
      tree: any pytree of arrays and packed leaves.
      leaf_text: ``(path, leaf) -> text``, called in the tree's flat order.
      path: where the tree lies in a larger one.
    """

    def below(key: Any, child: Any) -> Any:
        return describe(child, leaf_text, f"{path}/{key}" if path else str(key))

    if tree is None:
        return None
    if is_coded(tree) or jax.tree_util.all_leaves([tree]):
        return leaf_text(path, tree)
    code = vars(type(tree)).get("node")
    if isinstance(tree, Composite) and code is not None:
        try:
            tree.check(tuple(tree.shape))
        except ValueError as error:
            raise ArtifactError(f"cannot save {path or 'the leaf'}: its parts do not fit: {error}") from error
        return [code, list(tree.shape), *[below(name, part) for name, part in tree.children().items()]]
    if is_packed(tree):
        raise ArtifactError(f"packed leaves of type {type(tree).__name__} cannot be stored; unpack {path or 'it'} first")
    children = [
        (_key(keys[0]), child)
        for keys, child in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is None or node is not tree)[0]
    ]
    if type(tree) in (list, tuple):
        return [_LIST if type(tree) is list else _TUPLE, *[below(key, child) for key, child in children]]
    if len(children) == 1 and children[0][0] == "value":  # a mere wrapper of an array, transparent in paths too
        return describe(children[0][1], leaf_text, path)
    if all(isinstance(key, str) for key, _ in children):
        return {key: below(key, child) for key, child in children}
    return [_MAPPING, *[part for key, child in children for part in (key, below(key, child))]]


def leaf_texts(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield ``(path, text)`` of every leaf, in order.

    Raises:
      ArtifactError: if the JSON is not a tree of this kind.
    """
    if depth > _MAX_DEPTH:
        raise ArtifactError(f"the tree is deeper than {_MAX_DEPTH} at {shown(path)}")
    if node is None:
        return
    if isinstance(node, str):
        yield path, node
        return
    for key, child in _children(node, path):
        yield from leaf_texts(child, f"{path}/{key}" if path else str(key), depth + 1)


def rebuild(node: Any, leaves: Iterator[Any]) -> Any:
    """Return the tree that `describe` described, of dicts, lists, tuples and `LowRank`, with the given leaves in order.

    Raises:
      ArtifactError: if factors do not fit together.
    """
    if node is None:
        return None
    if isinstance(node, str):
        return next(leaves)
    children = [(key, rebuild(child, leaves)) for key, child in _children(node, "")]
    if isinstance(node, dict) or node[0] == _MAPPING:
        return dict(children)
    values = [value for _, value in children]
    if node[0] in (_LIST, _TUPLE):
        return values if node[0] == _LIST else tuple(values)
    kind, shape = _nodes()[node[0]], tuple(node[1])
    if not all(is_packed(part) or hasattr(part, "dtype") for part in values):
        raise ArtifactError(f"the parts of a {kind.__name__} of shape {shape} are no arrays")
    try:
        return kind.of_children(values, shape)
    except ValueError as error:
        raise ArtifactError(f"{kind.__name__} of shape {shape}: {error}") from error


def _nodes() -> dict[int, type[Composite]]:
    """The kinds of packed leaves by their numbers."""
    return {vars(kind)["node"]: kind for kind in kinds(Composite) if vars(kind).get("node") is not None}


def dense_sizes(node: Any, depth: int = 0) -> Iterator[int]:
    """Yield how many elements every factored leaf has as a dense array; leaves that are none are passed over.

    Raises:
      ArtifactError: if the JSON is not a tree of this kind.
    """
    if node is None or isinstance(node, str):
        return
    if depth > _MAX_DEPTH:
        raise ArtifactError(f"the tree is deeper than {_MAX_DEPTH}")
    children = _children(node, "")
    if isinstance(node, list) and node[0] in _nodes():
        yield math.prod(node[1])
    for _, child in children:
        yield from dense_sizes(child, depth + 1)


def _children(node: Any, path: str) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list) and node and type(node[0]) is int and node[0] in (_LIST, _TUPLE):
        return list(enumerate(node[1:]))
    if isinstance(node, list) and node and node[0] == _MAPPING and len(node) % 2:
        keys = node[1::2]
        # Of one type, since jax sorts them.
        if {type(key) for key in keys} in (set(), {str}, {int}) and len(set(keys)) == len(keys):
            return list(zip(keys, node[2::2]))
    if isinstance(node, list) and len(node) > 2 and type(node[0]) is int and _is_shape(node[1]):
        kind, parts = _nodes().get(node[0]), node[2:]
        if kind is not None and kind.may_have(len(parts)):
            return list(zip(kind.names(len(parts)), parts))
    raise ArtifactError(f"the tree is damaged at {shown(path) or 'its root'}: {shown(node, 60)}")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(type(length) is int and length >= 0 for length in value)


def in_order(tree: Any, like: Any = None) -> Iterator[Any]:
    """The leaves in the order of the file, which is not jax's where a node of another type kept an order of its own.

    Args:
      tree: dicts, lists, tuples and leaves.
      like: the tree whose order counts; None: `tree` itself.
    """
    like = tree if like is None else like
    if isinstance(like, dict):
        for key, child in like.items():
            yield from in_order(tree[key], child) if child is not None else ()
    elif isinstance(like, (list, tuple)):
        for index, child in enumerate(like):
            yield from in_order(tree[index], child) if child is not None else ()
    elif tree is not None:
        yield tree
