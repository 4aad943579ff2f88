"""The shape of the tree in JSON: what holds what, down to the leaves' texts.

A mapping is an object; other nodes are lists that begin with a number: a list, a tuple, a mapping whose keys are not texts, the
factors of a `LowRank`, the blocks of a `BlockSparse`, the weight and the correction of an `Adapted`, the parts of a network of
tensors (`Tucker`, `CP`, ...). A node of another type (an `nnx.State`, a dataclass) is stored as a mapping by its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.packed import is_coded, is_packed
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.block_sparse import BlockSparse, rows_of
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.networks import CP, Factors, Separable, TensorTrain, TensorTrainMatrix, Tucker, dense_shape

_LIST, _TUPLE, _MAPPING, _LOW_RANK, _BLOCKS = range(5)
# The fields of networks of tensors: several of them, or one that holds a tuple of so many parts.
_NETWORKS: dict[int, tuple[type[Factors], tuple[str, ...], tuple[int, int]]] = {
    5: (Separable, ("first", "second"), (2, 2)),
    6: (Tucker, ("first", "core", "last"), (3, 3)),
    7: (CP, ("factors",), (2, 5)),
    8: (TensorTrain, ("cores",), (2, 5)),
    9: (TensorTrainMatrix, ("cores",), (2, 13)),
}
_ADAPTED = 10
# Nodes of a shape and two parts, by name.
_PAIRS = {_LOW_RANK: ("u", "v"), _BLOCKS: ("blocks", "rows"), _ADAPTED: ("base", "correction")}
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
    if isinstance(tree, LowRank):
        return [_LOW_RANK, list(tree.shape), below("u", tree.u), below("v", tree.v)]
    if isinstance(tree, BlockSparse):
        return [_BLOCKS, list(tree.shape), below("blocks", tree.blocks), below("rows", tree.rows)]
    if isinstance(tree, Adapted):
        return [_ADAPTED, list(tree.shape), below("base", tree.base), below("correction", tree.correction)]
    for code, (kind, fields, _) in _NETWORKS.items():
        if type(tree) is kind:
            values = [getattr(tree, field) for field in fields]
            parts = values if len(fields) > 1 else values[0]
            return [code, list(tree.shape), *[below(key, part) for key, part in zip(_keys(fields, len(parts)), parts)]]
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
        raise ArtifactError(f"the tree is deeper than {_MAX_DEPTH} at {path}")
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
    if node[0] == _LOW_RANK:
        return _factored(values[0], values[1], tuple(node[1]))
    if node[0] == _BLOCKS:
        return _blocked(values[0], values[1], tuple(node[1]))
    if node[0] == _ADAPTED:
        return _adapted(values[0], values[1], tuple(node[1]))
    if node[0] in _NETWORKS:
        return _network(node[0], values, tuple(node[1]))
    return values if node[0] == _LIST else tuple(values)


def _factored(u: Any, v: Any, shape: tuple[int, ...]) -> LowRank:
    if not all(is_coded(part) or hasattr(part, "dtype") for part in (u, v)):
        raise ArtifactError(f"the factors of a tensor of shape {shape} are no arrays")
    product = (*u.shape[:-1], *v.shape[-1:])
    fits = len(u.shape) == len(v.shape) > 1 and u.shape[-1] == v.shape[-2] and u.shape[:-2] == v.shape[:-2]
    if not fits or math.prod(product) != math.prod(shape):
        raise ArtifactError(f"factors of shapes {u.shape} and {v.shape} make no tensor of shape {shape}")
    return LowRank(u=u, v=v, shape=shape)


def _adapted(base: Any, correction: Any, shape: tuple[int, ...]) -> Adapted:
    fits = (is_coded(base) or hasattr(base, "dtype")) and isinstance(correction, LowRank)
    if not fits or tuple(base.shape) != shape or correction.shape != shape:
        raise ArtifactError(f"a weight and a correction make no tensor of shape {shape}")
    return Adapted(base=base, correction=correction)


def _blocked(blocks: Any, rows: Any, shape: tuple[int, ...]) -> BlockSparse:
    if not all(hasattr(part, "dtype") and not is_packed(part) for part in (blocks, rows)):
        raise ArtifactError(f"the blocks of a tensor of shape {shape} are no arrays")
    stack = len(blocks.shape) - 4
    fits = 0 <= stack <= len(shape) - 2 and blocks.shape[:-2] == rows.shape and rows.dtype == "int32"
    fits = fits and min(blocks.shape[-2:]) > 0 and blocks.shape[:stack] == shape[:stack]
    if not fits or -(-shape[-1] // blocks.shape[-1]) != blocks.shape[stack]:
        raise ArtifactError(f"blocks of shape {blocks.shape} in rows of shape {rows.shape} make no tensor of shape {shape}")
    most = -(-rows_of(shape, stack) // blocks.shape[-2])
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) <= most:
        raise ArtifactError(f"a block beyond the {most} rows of blocks of a tensor of shape {shape}")
    return BlockSparse(blocks=blocks, rows=rows, shape=shape)


def _network(code: int, parts: list[Any], shape: tuple[int, ...]) -> Factors:
    kind, fields, _ = _NETWORKS[code]
    if not all(is_coded(part) or hasattr(part, "dtype") for part in parts):
        raise ArtifactError(f"the parts of a {kind.__name__} of shape {shape} are no arrays")
    values = dict(zip(fields, parts)) if len(fields) > 1 else {fields[0]: tuple(parts)}
    leaf: Any = kind(**values, shape=shape)  # type: ignore[call-arg]
    given = ", ".join(str(tuple(part.shape)) for part in parts)
    try:
        # The rank of a kernel follows from its parts' axes; there are letters for three in space.
        fits = not isinstance(leaf, Tucker) or 0 <= len(leaf.core.shape) - len(leaf.first.shape) <= 3
        fits = fits and dense_shape(leaf) == shape
    except ValueError as error:
        raise ArtifactError(f"a {kind.__name__} of shape {shape}: {error}") from error
    if not fits:
        raise ArtifactError(f"parts of shapes {given} make no {kind.__name__} of shape {shape}")
    return leaf


def _keys(fields: tuple[str, ...], count: int) -> list[str]:
    return list(fields) if len(fields) > 1 else [f"{fields[0]}/{at}" for at in range(count)]


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
    if isinstance(node, list) and node[0] not in (_LIST, _TUPLE, _MAPPING):
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
    if isinstance(node, list) and len(node) == 4 and type(node[0]) is int and node[0] in _PAIRS and _is_shape(node[1]):
        return list(zip(_PAIRS[node[0]], node[2:]))
    if isinstance(node, list) and len(node) > 2 and type(node[0]) is int and node[0] in _NETWORKS and _is_shape(node[1]):
        _, fields, (least, most) = _NETWORKS[node[0]]
        if least <= len(node) - 2 <= most:
            return list(zip(_keys(fields, len(node) - 2), node[2:]))
    raise ArtifactError(f"the tree is damaged at {path or 'its root'}: {str(node)[:60]}")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(type(length) is int and length >= 0 for length in value)
