"""A first convolution over blocks of pixels: the same numbers from an image of few channels, gathered four pixels at a time.

ONNX Runtime gathers what a convolution in eight bits multiplies pixel by pixel, a byte of each channel: for an image of one or
three channels that takes longer than the products. Four neighbours are one pixel of four times the channels, and of the result;
the weights, moved for each of the four, have zeros between. Sums of whole numbers stay what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

_PIXELS = 4
_CHANNELS, _OUTPUTS = 3, 32
"""Beyond these the products take the time."""


def in_blocks(model: ModelProto) -> bool:
    """Have the first convolution of an image in eight bits done over blocks of pixels, where it is of few channels.

    Args:
      model: a placed one; changed in place.

    Returns:
      whether there is such a convolution.
    """
    graph = model.graph
    for port in graph.input:
        shape = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
        if len(shape) == 4 and 0 < shape[3] <= _CHANNELS and shape[1] and shape[2] and shape[2] % _PIXELS == 0:
            chain = _chain(graph, port.name)
            if chain is not None and _write(graph, shape, *chain[1:]):
                return True
    return False


def _chain(graph: Any, name: str) -> list[NodeProto] | None:
    """The rounding, transposition, convolution and rounding that alone read an input, one after the other."""
    found = []
    for kind in ("QuantizeLinear", "DequantizeLinear", "Transpose", "Conv", "QuantizeLinear"):
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type != kind or readers[0].input[0] != name:
            return None
        found.append(readers[0])
        name = readers[0].output[0]
    return found


def _write(graph: Any, shape: list[int], opened: NodeProto, moved: NodeProto, conv: NodeProto, last: NodeProto) -> bool:
    held = {tensor.name: tensor for tensor in graph.initializer}
    weight = next((node for node in graph.node if node.output[0] == conv.input[1]), None)
    said = {one.name: list(one.ints) or one.i for one in conv.attribute}
    if weight is None or weight.op_type != "DequantizeLinear" or list(moved.attribute[0].ints) != [0, 3, 1, 2]:
        return False
    codes, scale = (numpy_helper.to_array(held[name]) for name in weight.input[:2])
    top, left, bottom, right = said.get("pads", [0] * 4)
    plain = said.get("strides", [1, 1]) == said.get("dilations", [1, 1]) == [1, 1] and said.get("group", 1) == 1
    bias = [_bias(held, name) for name in conv.input[2:]]
    if not plain or left + right != codes.shape[3] - 1 or len(codes) > _OUTPUTS or any(one is None for one in bias):
        return False

    def const(array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(array, f"blocks_{len(graph.initializer)}"))
        return graph.initializer[-1].name

    wide, before, after = _wide(codes, left)
    pixels = const(np.array([-1, shape[1], shape[2] // _PIXELS, _PIXELS * shape[3]]))
    whole = const(np.array([-1, shape[1] + top + bottom - codes.shape[2] + 1, shape[2], len(codes)]))
    given = [const(wide), const(np.tile(scale, _PIXELS)), const(np.zeros(len(wide), np.int8))]
    tiled = [f"{conv.output[0]}_weight", *(const(np.tile(one, _PIXELS)) for one in bias if one is not None)]
    rounded, name = last.output[0], f"{last.output[0]}_blocks"
    extra = {
        id(opened): [helper.make_node("Reshape", [opened.input[0], pixels], [f"{opened.input[0]}_blocks"])],
        id(conv): [helper.make_node("DequantizeLinear", given, tiled[:1], axis=0)],
    }
    opened.input[0] += "_blocks"
    new = helper.make_node("Conv", [conv.input[0], *tiled], conv.output, pads=[top, before, bottom, after])
    last.output[0] = name
    behind = [
        helper.make_node("Transpose", [name], [f"{name}_last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [f"{name}_last", whole], [f"{name}_whole"]),
        helper.make_node("Transpose", [f"{name}_whole"], [rounded], perm=[0, 3, 1, 2]),
    ]
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += [*extra.get(id(node), ()), new if node is conv else node, *(behind if node is last else ())]
    read = {one for node in nodes for one in node.input} | {port.name for port in graph.output}
    nodes = [node for node in nodes if any(one in read for one in node.output)]
    read = {one for node in nodes for one in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    return True


def _bias(held: dict[str, Any], name: str) -> np.ndarray | None:
    """A bias in floats; None if the file makes it of codes."""
    return numpy_helper.to_array(held[name]) if name in held else None


def _wide(codes: np.ndarray, left: int) -> tuple[np.ndarray, int, int]:
    """Weights ``[C, c, h, w]`` for blocks, ``[4 C, 4 c, h, blocks]``; and how many blocks of zeros are before and after."""
    outputs, channels, height, width = codes.shape
    before = -(-left // _PIXELS)
    after = (_PIXELS + width - 2 - left) // _PIXELS
    wide = np.zeros((_PIXELS, outputs, _PIXELS, channels, height, before + after + 1), np.int8)
    for to in range(_PIXELS):
        for place in range(width):
            block, pixel = divmod(to + place - left, _PIXELS)
            wide[to, :, pixel, :, :, block + before] = codes[..., place]
    return wide.reshape(_PIXELS * outputs, _PIXELS * channels, height, -1), before, after
