"""The same architectures for onnxruntime: random weights, batch norms folded into biases."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np


class Graph:
    """An ONNX graph that is being written."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper, self.rng = helper, numpy_helper, np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, *shape: int) -> str:
        """A new weight, by name."""
        name = f"w{len(self.weights)}"
        array = 0.05 * self.rng.standard_normal(shape, np.float32)
        self.weights.append(self.numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **options: Any) -> str:
        """A new operation; its result, by name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], **options))
        return name

    def conv(self, x: str, width: int, features: int, size: int, stride: int = 1, groups: int = 1, relu: bool = True) -> str:
        """A convolution with bias, and relu."""
        kernel, bias = self.weight(features, width // groups, size, size), self.weight(features)
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4, "group": groups}
        out = self.op("Conv", x, kernel, bias, **shape)
        return self.op("Relu", out) if relu else out

    def head(self, x: str, width: int) -> str:
        """Mean over the image, and a dense layer."""
        return self.op("Gemm", self.op("Flatten", self.op("GlobalAveragePool", x)), self.weight(width, 1000), self.weight(1000))


def _resnet(graph: Graph, x: str) -> str:
    x, width = graph.op("MaxPool", graph.conv(x, 3, 64, 7, 2), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for stage in range(4):
        for block in range(2):
            stride, features = 2 if stage and not block else 1, 64 * 2**stage
            y = graph.conv(graph.conv(x, width, features, 3, stride), features, features, 3, relu=False)
            short = x if width == features else graph.conv(x, width, features, 1, stride, relu=False)
            x, width = graph.op("Relu", graph.op("Add", y, short)), features
    return graph.head(x, width)


def _mobilenet(graph: Graph, x: str) -> str:
    x, width = graph.conv(x, 3, 32, 3, 2), 32
    for features, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)):
        x, width = graph.conv(graph.conv(x, width, width, 3, stride, groups=width), width, features, 1), features
    return graph.head(x, width)


WRITERS: dict[str, Callable[[Graph, str], str]] = {
    "ResNet-18, 64 px, batch 32": _resnet,
    "ResNet-18, 224 px, batch 1": _resnet,
    "MobileNet, 64 px, batch 32": _mobilenet,
}
"""By the networks' names in `lowering_nets`."""


def session(name: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """Return a call of onnxruntime on a network.

    Args:
      name: of the network.
      shape: of its input, channels last.
    """
    import onnx
    import onnxruntime

    graph, shape = Graph(), (shape[0], shape[3], *shape[1:3])
    out = WRITERS[name](graph, "x")
    helper, kind = graph.helper, onnx.TensorProto.FLOAT
    ends = [[helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info(out, kind, None)]]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "net", *ends, graph.weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: made.run(None, {"x": x})
