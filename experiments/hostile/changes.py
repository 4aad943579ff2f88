"""What is done to bytes and to JSON: changed, cut, repeated, left out, renamed."""

from typing import Any

import numpy as np

WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 64, 1 << 31, 1 << 40, 1 << 70, 1.5, "", "a", "../../x", "/etc/x", "\x1b[2J", "a\0b", "x" * 3000),
    *(
        [],
        [0],
        [-1, 2],
        [1 << 40],
        [1 << 40, 0],
        {},
        {"a": 1},
        [[[]]],
        "F32",
        "F64",
        "F6_E2M3",
        "BOOL",
        "int1",
        "float6_e2m3fn",
    ),
    *("uint8", "object", "patch_pca", "key rbg:a", "int:a", [1, "2"], [3, [2, 2], ":a", ":a"]),
)


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes, flip bits, or cut, repeat, move or insert a piece."""
    out = bytearray(data) or bytearray(1)
    kind, (start, end, at) = rng.integers(7), rng.integers(0, len(out) + 1, 3)
    start, end = min(start, end), min(max(start, end), min(start, end) + 40)
    piece = bytes(out[start:end])
    if kind < 4:
        for place in rng.integers(0, len(out), rng.integers(1, 4)):
            usual = int(rng.choice(np.array([0, 1, 127, 128, 255, rng.integers(256)])))
            out[place] = usual if kind % 2 else out[place] ^ 1 << int(rng.integers(8))
    elif kind == 4:
        del out[start:end]
    elif kind == 5:
        out[at:at] = piece
    else:
        out[at : at + len(piece)] = piece
    return bytes(out)


def reworded(node: Any, rng: np.random.Generator) -> Any:
    """JSON with one part changed, left out or renamed, somewhere."""
    if isinstance(node, dict) and node and rng.random() < 0.8:
        key = list(node)[rng.integers(len(node))]
        rest = {name: value for name, value in node.items() if name != key}
        way = rng.random()
        return (
            rest if way < 0.1 else {**rest, str(word(rng)): node[key]} if way < 0.2 else {**node, key: reworded(node[key], rng)}
        )
    if isinstance(node, list) and node and rng.random() < 0.8:
        place = rng.integers(len(node))
        return [*node[:place], reworded(node[place], rng), *node[place + 1 :]]
    return word(rng)


def word(rng: np.random.Generator) -> Any:
    return WORDS[rng.integers(len(WORDS))]
