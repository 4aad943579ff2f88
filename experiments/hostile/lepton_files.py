"""Hostile `.lepton` files from a seed: tiny good files of every kind of leaf and every coder, and what is done to them.

Most changes come with right checksums, so that the decoders really see false streams, manifests and compressed sections.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hostile.changes import edited
from lepton_jax.artifact import container, leaves
from lepton_jax.coding import (
    compression,
    gaps,
    groups,
    huffman,
    mask_bits,
    mask_classes,
    mask_rows,
    rans,
    sparse_index,
    streams,
    symbols,
)
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.coding.rangecoder import Encoder
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Writer
from lepton_jax.coding.symbol_bits import code_symbols
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.leaves.stored import put_array
from lepton_jax.quantization import Binary, Float8, NormalFloat4, Ternary, Uniform, mxfp4, mxfp8, quantize

_PROGRAM = bytes(range(64)) * 4
_FORMATS = (
    Uniform(4, False, None, 4, scale_dtype="float16"),
    Uniform(16),
    Uniform(5, channel_axis=-1, narrow_range=True),
    *(Binary(channel_axis=1), Ternary(), Float8(), NormalFloat4(), mxfp4(), mxfp8("float8_e5m2")),
)
_NUMBERS: tuple[Any, ...] = (None, True, -1, 0, 3, 1 << 70, 1.5, float("nan"), float("inf"))
_WORDS: tuple[Any, ...] = (*_NUMBERS, "", "-", "5", [], [0], [3, [2, 2], "2,1", "1,2"], {})
_TEXTS = (
    "",
    "-",
    "0",
    "7,0,9",
    "4096,4096",
    "3000000",
    "0,99999999999",
    "c8 9,9",
    "q4,1,99 6,4",
    "q3,0,7 6,4",
    "g0,99,0,99,0,4,1,1,0 6,4",
    "g0,99,0,99,0,4,1,1,0,0 6,4",
    "g0,99,0,99,0,4,0,0,1 6,4",
    "s 12,16",
    "k -",
)
_DTYPES = (
    "bfloat16",
    "bool",
    "float64",
    "complex128",
    "int4",
    "float8_e4m3fn",
    "V16",
    ">f4",
    "object",
    "finfo",
    "M8[s]",
    "longdouble",
)


class Good(NamedTuple):
    """A good file: its sections before compression, and all its bytes."""

    manifest: bytes
    tensors: bytes
    file: bytes


class Hostile(NamedTuple):
    """A file that was changed.

    Args:
      kind: what was done.
      data: all its bytes.
      sealed: whether its checksums are right, so that it may hold other tensors than the good file; else None of them may load.
      good: which good file it was made from.
    """

    kind: str
    data: bytes
    sealed: bool
    good: int


def position_streams(mask: np.ndarray, hints: Hints) -> dict[str, bytes]:
    """The mask by every coder of positions that can hold it."""
    rows, columns = (hints.recall(length) for length in mask.shape)

    def coded(prefix: bytes, code: Callable[[Encoder], Any]) -> bytes:
        writer, coder = Writer(), Encoder()
        writer.put(prefix)
        code(coder)
        writer.block(coder.finish())
        return bytes(writer.data)

    def written(write: Callable[..., None], *args: Any) -> bytes:
        writer = Writer()
        write(writer, mask, *args)
        return bytes(writer.data)

    found = groups.find_groups(mask)
    blocks = sparse_index._encode_blocks(mask)
    streams = {
        "bits": np.packbits(mask.reshape(-1), bitorder="little").tobytes(),
        "context": coded(b"", lambda coder: mask_bits.code_mask(coder, mask, mask.shape, 1, (rows, columns))),
        "classes": written(mask_classes.encode),
        "rows": coded(b"\1", lambda coder: mask_rows.code_mask(coder, mask, mask.shape, 1, (rows, columns), True)),
        "gaps": written(gaps.encode_flat),
        "lists": written(gaps.encode_rows),
        "groups": written(groups.encode_groups, *found) if found else None,
        "blocks": bytes(blocks[0].data[1:]) if blocks else None,
    }
    return {name: bytes([sparse_index.CODERS.index(name)]) + data for name, data in streams.items() if data is not None}


def symbol_streams(codes: np.ndarray, alphabet: int) -> dict[str, bytes]:
    """The codes of a matrix of 12 rows by every coder of symbols that codes them one by one."""
    counts, coder = np.bincount(codes, minlength=alphabet), Encoder()
    code_symbols(coder, codes, np.ones((12, codes.size // 12), bool), alphabet, 1)
    mixing, short, static = (Writer(symbols.CODERS.index(name)) for name in ("mixing", "huffman", "rans"))
    mixing.block(coder.finish())
    huffman.encode(short, codes, counts)
    table = rans.frequencies(counts)
    rans.write_table(static, table)
    rans.encode(static, codes, table)
    writers = {"bits": symbols.encode_bits(codes, alphabet), "mixing": mixing, "huffman": short, "rans": static}
    return {name: bytes(writer.data) for name, writer in writers.items()}


quantized = jax.jit(quantize, static_argnums=1)


def small_leaves(rng: np.random.Generator) -> dict[str, Any]:
    """Leaves that the writer codes by itself; together they take every kind of leaf and every coder of arrays."""
    few = np.where(rng.random((9, 8)) < 0.2, rng.integers(1, 8, (9, 8)), 0).astype(np.uint8)
    blocks = np.kron(rng.random((3, 2)) < 0.5, np.ones((4, 4))) * rng.normal(size=(12, 8))
    return {
        "scalar": jnp.float32(-0.0),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "bias": jnp.asarray(rng.normal(size=9), jnp.float32),
        "text": np.frombuffer((b"compressed bytes " * 40)[:640], np.int32) + np.arange(160, dtype=np.int32) % 5 * 65536,
        "planes": jnp.asarray(rng.normal(size=(26, 10)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(9, 8)).astype(np.float16).astype(np.float32)),
        "brain": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16).astype(jnp.float32),
        "steps": jnp.arange(0, 800, 20, dtype=jnp.int32),
        "palette": jnp.asarray(rng.integers(0, 3, (16, 9)), jnp.int8),
        "flags": jnp.asarray(rng.random(40) < 0.5),
        "holes": jnp.asarray(np.where(rng.random((15, 10)) < 0.1, rng.normal(size=(15, 10)), 0), jnp.float32),
        "blocks": jnp.asarray(blocks, jnp.float32),
        "complex": jnp.array([1 + 2j, -0.0j], jnp.complex64),
        "codebook": CodebookArray(
            pack_bits(jnp.asarray(few), 3), jnp.asarray(np.sort(rng.normal(size=7)), jnp.float32), 3, (9, 8), "float32"
        ),
        "channels": quantized(
            jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), Uniform(bits=3, symmetric=False, channel_axis=-1)
        ),
        "tensor": quantized(jnp.asarray(rng.normal(size=(5, 5)), jnp.float32), Uniform(bits=4)),
        "sparse": Sparse.from_dense(jnp.asarray(np.eye(9), jnp.bfloat16)),
        "keys": jax.random.split(jax.random.key(3), 2),
        **{fmt.name: quantized(jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), fmt) for fmt in _FORMATS},
    }


def _masks(rng: np.random.Generator) -> list[np.ndarray]:
    """Two of every four, whole blocks, and no structure."""
    patterns = rng.permuted(np.tile([True, True, False, False], (12, 4, 1)), axis=2).reshape(12, 16)
    return [patterns, np.kron(rng.random((4, 4)) < 0.4, np.ones((3, 4), bool)) != 0, rng.random((12, 16)) < 0.15]


def _by_every_coder(rng: np.random.Generator, part: int, parts: int) -> tuple[dict[str, str], bytes]:
    """(texts, bytes) of leaves coded by each coder of positions and of symbols, every `parts`-th of them from `part` on."""
    texts, body, hints, number = {}, b"", Hints(), 0
    for mask in _masks(rng):
        for name in position_streams(mask, Hints()):
            number += 1
            if number % parts == part:
                # A stream may depend on what earlier leaves of the file left alive.
                stream, values = position_streams(mask, hints)[name], Writer()
                put_array(values, np.linspace(-1, 1, int(mask.sum()), dtype=np.float32), hints)
                body += bytes([symbols.HOLES, 0, 1]) + stream + bytes(values.data)
                hints.remember(np.asarray(mask.any(0)))
                texts[f"{number:02d}_{name}"] = "s 12,16"
    codes = np.minimum(rng.geometric(0.4, 120) - 1, 15).astype(np.uint8)
    for name, stream in symbol_streams(codes, 16).items():
        number += 1
        if number % parts == part:
            table = Writer()
            put_array(table, np.arange(15, dtype=np.float32), hints)
            body += bytes(table.data) + b"\x0f" + stream
            hints.remember((codes != 0).reshape(12, 10).any(0))
            texts[f"{number:02d}_{name}"] = "c4 12,10"
    return texts, body


@functools.cache  # the coders are slow, and a seed gives the same files
def good_files(seed: int = 0) -> list[Good]:
    """Tiny files that hold, together, every kind of leaf and every coder."""
    rng = np.random.default_rng(seed)
    parts: list[tuple[Any, bytes]] = []
    small = list(small_leaves(rng).items())
    for group in range(8):
        hints, texts, body = Hints(), {}, b""
        for name, leaf in small[group::8]:
            spec, data = leaves.encode(leaf, hints)
            texts[name], body = spec.text, body + data
        parts.append(({"params": texts, "list": [0, [1], None]}, body))
    u, v = (leaves.encode(jnp.asarray(rng.normal(size=shape), jnp.float32), Hints()) for shape in ((6, 2), (2, 5)))
    one = leaves.encode(jnp.float32(1), Hints())
    parts.append(({"w": [3, [6, 5], u[0].text, v[0].text], "n": [2, 3, "-", 11, "-"]}, u[1] + v[1] + 2 * one[1]))
    return [_good(tree, body) for tree, body in parts] + coder_files(13, seed)


def coder_files(count: int, seed: int = 0) -> list[Good]:
    """As many files that hold, together, a leaf coded by each coder of positions and of symbols."""
    return [_good(*_by_every_coder(np.random.default_rng(seed), part, count)) for part in range(count)]


def _good(tree: Any, tensors: bytes) -> Good:
    head = {"recipe": {"bits": 3}, "metrics": {"error": 0.5}, "jax": "0.10.2"}
    manifest = json.dumps({"tree": tree, **head}, separators=(",", ":")).encode()
    return Good(manifest, tensors, container.build(manifest, _PROGRAM, tensors))


def seal(sections: list[tuple[int, bytes, int]], version: bytes = bytes([container.MAJOR, container.MINOR])) -> bytes:
    """A file of these (codec, stored bytes, declared size), with right checksums."""
    head = bytearray(container.MAGIC + version)
    for codec, stored, size in sections:
        head += bytes([codec]) + streams.varint(len(stored)) + streams.varint(size) + zlib.crc32(stored).to_bytes(4, "little")
    return bytes(head + zlib.crc32(head).to_bytes(4, "little") + b"".join(stored for _, stored, _ in sections))


def _sealed(manifest: bytes, tensors: bytes) -> bytes:
    return seal([(0, data, len(data)) for data in (manifest, _PROGRAM, tensors)])


def _edit_tree(node: Any, rng: np.random.Generator) -> Any:
    """The JSON with one part changed, somewhere."""
    if isinstance(node, dict) and node and rng.random() < 0.85:
        key = list(node)[rng.integers(len(node))]
        if rng.random() < 0.1:
            items = list(node.items())
            rng.shuffle(items)
            return dict(items)
        return {**node, key: _edit_tree(node[key], rng)}
    if isinstance(node, list) and node and rng.random() < 0.85:
        place = rng.integers(len(node))
        return [*node[:place], _edit_tree(node[place], rng), *node[place + 1 :]]
    if isinstance(node, str) and node and rng.random() < 0.8:
        if rng.random() < 0.3:
            return node.split(" ")[0] + " " + str(rng.choice(_DTYPES))
        letter = str(rng.choice(list("0123456789,- cqskx")))
        place = rng.integers(len(node))
        return node[:place] + letter + node[place + rng.integers(2) :]
    return _WORDS[rng.integers(len(_WORDS))] if rng.random() < 0.5 else str(rng.choice(_TEXTS))


def _swap_specs(manifest: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Two tensors' texts exchanged."""
    text = json.dumps(manifest)
    specs = sorted({text for _, text in _texts(manifest["tree"])})
    a, b = (json.dumps(str(rng.choice(specs))) for _ in range(2))
    return json.loads(text.replace(a, '"?"').replace(b, a).replace('"?"', b))


def _texts(node: Any) -> list[tuple[Any, str]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [(None, node)] if isinstance(node, str) else [text for _, child in children for text in _texts(child)]


def _false_head(good: Good, rng: np.random.Generator) -> bytes:
    """Sections under false codecs and sizes, with right checksums; or compressed ones damaged under their checksum."""
    sections = []
    for data in (good.manifest, _PROGRAM, good.tensors):
        codec, stored = (0, data) if rng.random() < 0.5 else compression.compress(data)
        size = len(data)
        if rng.random() < 0.5:
            codec = int(rng.integers(6)) if rng.random() < 0.4 else codec
            stored = edited(stored, rng) if rng.random() < 0.5 else stored
            size = int(rng.choice([0, size - 1, size + 1, 1 << 20, 1 << 30, 1 << 40])) if rng.random() < 0.5 else size
        sections.append((codec, stored, size))
    return seal(sections)


def hostile(goods: list[Good], seed: int, case: int) -> Hostile:
    """The file of a case."""
    rng = np.random.default_rng([seed, case])
    which, other = (int(n) for n in rng.integers(0, len(goods), 2))
    good = goods[which]
    kinds = ("edited", "truncated", "spliced", "head", "manifest", "json", "specs", "tensors", "tensors", "tensors", "sections")
    kind = kinds[case % len(kinds)]
    if kind == "edited":
        return Hostile(kind, edited(good.file, rng), False, which)
    if kind == "truncated":
        return Hostile(kind, good.file[: rng.integers(len(good.file))], False, which)
    if kind == "spliced":
        foreign, (start, at) = goods[other].file, rng.integers(0, 200, 2)
        return Hostile(kind, good.file[:at] + foreign[start:], False, which)
    if kind == "head":
        return Hostile(kind, _false_head(good, rng), True, which)
    if kind == "manifest":
        return Hostile(kind, _sealed(edited(good.manifest, rng), good.tensors), True, which)
    if kind == "json":
        changed = json.dumps(_edit_tree(json.loads(good.manifest), rng), separators=(",", ":")).encode()
        return Hostile(kind, _sealed(changed, good.tensors), True, which)
    if kind == "specs":
        changed = json.dumps(_swap_specs(json.loads(good.manifest), rng)).encode()
        return Hostile(kind, _sealed(changed, good.tensors), True, which)
    if kind == "tensors":
        return Hostile(kind, _sealed(good.manifest, edited(good.tensors, rng)), True, which)
    foreign = goods[other].tensors
    mixed = rng.integers(3)
    tensors = (foreign, good.tensors + foreign, foreign[: rng.integers(len(foreign) + 1)] + good.tensors)[mixed]
    return Hostile(kind, _sealed(good.manifest, tensors), True, which)
