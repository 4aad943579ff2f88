"""ONNX files that strangers wrote to do harm: each is refused in one line, before it has cost memory or time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from interchange.onnx_graphs import graph_of, node, port
from onnx import TensorProto, helper

from lepton_jax import load_model
from lepton_jax.artifact.artifact import ArtifactError

HUGE = 1 << 34
X = [port("x", [1, 4])]


def tensor(dims: Sequence[int], data: bytes = b"", kind: int = TensorProto.FLOAT, name: str = "w") -> onnx.TensorProto:
    made = onnx.TensorProto(name=name, data_type=kind, raw_data=data)
    made.dims.extend(dims)
    return made


def with_tensor(one: onnx.TensorProto) -> onnx.ModelProto:
    model = graph_of([node("Add", "x w", "y")], X, ["y"])
    model.graph.initializer.append(one)
    return model


def external(place: str, offset: str = "0", length: str = "16") -> onnx.ModelProto:
    made = onnx.TensorProto(name="w", data_type=1, data_location=TensorProto.EXTERNAL)
    made.dims.extend([4])
    for key, value in (("location", place), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=value)
    return with_tensor(made)


def of(nodes: Sequence[Any], *shapes: Any, **tensors: Any) -> onnx.ModelProto:
    return graph_of(nodes, list(shapes) or X, ["y"], {name: np.asarray(value) for name, value in tensors.items()})


def doubled(times: int, start: str, first: Sequence[Any] = ()) -> onnx.ModelProto:
    """A value joined with itself again and again."""
    nodes = [*first, node("Concat", f"{start} {start}", "v0", axis=0)]
    nodes += [node("Concat", f"v{i} v{i}", f"v{i + 1}", axis=0) for i in range(times)]
    return of([*nodes, node("ReduceSum", f"v{times}", "r"), node("Add", "r x", "y")], c=np.ones((1, 4), np.float32))


def nested_branches(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([node("Relu", "x", "t0")], "g", [], [port("t0", None)])
    for i in range(depth):
        other = helper.make_graph([node("Neg", "x", f"e{i}")], "e", [], [port(f"e{i}", None)])
        inner = helper.make_node("If", ["c"], [f"t{i + 1}"], then_branch=graph, else_branch=other)
        graph = helper.make_graph([inner], "g", [], [port(f"t{i + 1}", None)])
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "c", to=TensorProto.BOOL), *graph.node]
    return graph_of(nodes, X, [f"t{depth}"])


def functions(calls: int, depth: int, itself: bool = False) -> onnx.ModelProto:
    """Functions each of which calls the one before several times."""
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("m", 1)]
    made = [helper.make_function("m", "f0", ["a"], ["b"], [node("Relu", "a", "b")], sets, [])]
    for i in range(1, depth):
        body = [node(f"f{i if itself else i - 1}", "a" if j == 0 else f"t{j}", f"t{j + 1}", domain="m") for j in range(calls)]
        made.append(helper.make_function("m", f"f{i}", ["a"], [f"t{calls}"], body, sets, []))
    call = node(f"f{depth - 1}", "x", "y", domain="m")
    return graph_of([call], X, ["y"], functions=made, domains={"m": 1})


def endless(turns: str) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", "go", "go2"), node("Add", "v v", "v2"), node("Add", "v2 v", "left")], "b",
        [port("i", [], 7), port("go", [], 9), port("v", None)], [port("go2", [], 9), port("v2", None), port("left", None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", [turns, "on", "x"], ["y", "all"], body=body)
    return graph_of([loop], X, ["y", "all"], {"on": np.array(True), "turns": np.array(1 << 40)})


FEED = [node("ReduceSum", "c", "d"), node("Add", "x d", "y")]
CASES: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a path upwards": (lambda: external("../secret.bin"), "no file beside the model's"),
    "an absolute path": (lambda: external("/etc/passwd"), "no file beside the model's"),
    "a backslash upwards": (lambda: external("..\\secret.bin"), "no file beside the model's"),
    "a link that leads out": (lambda: external("link.bin"), "leads out of the model's folder"),
    "an absent file": (lambda: external("absent.bin"), "cannot be read"),
    "a pipe": (lambda: external("pipe.bin"), "a pipe"),
    "the folder": (lambda: external("."), "is a folder"),
    "an offset beyond the end": (lambda: external("own.bin", offset="100"), "which has 16"),
    "an offset below zero": (lambda: external("own.bin", offset="-8"), "which has 16"),
    "an offset of text": (lambda: external("own.bin", offset="a"), "that is no number"),
    "another length": (lambda: external("own.bin", length="8"), "takes 16 bytes; the file has 8"),
    "more elements than bytes": (lambda: with_tensor(tensor([1 << 40], b"\0" * 16)), "takes 4398046511104 bytes"),
    "lengths below zero": (lambda: with_tensor(tensor([-1], b"\0" * 16)), "0 or more"),
    "lengths whose product is small": (lambda: with_tensor(tensor([-2, -2], b"\0" * 16)), "0 or more"),
    "many axes": (lambda: with_tensor(tensor([1] * 64, b"\0" * 4)), "32 axes at most"),
    "an unknown type": (lambda: with_tensor(tensor([4], b"\0" * 16, kind=99)), "of type 99"),
    "text": (lambda: with_tensor(tensor([4], b"\0" * 16, kind=8)), "text"),
    "flags of 2": (lambda: with_tensor(tensor([4], b"\0\1\2\1", kind=9)), "neither 0 nor 1"),
    "a circle": (lambda: of([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]), "in a circle"),
    "a node of itself": (lambda: of([node("Add", "x y", "y")]), "in a circle"),
    "an output that no one makes": (lambda: of([node("Relu", "x", "z")]), "no node makes the output y"),
    "an input that no one makes": (lambda: of([node("Add", "x z", "y")]), "no node makes its input z"),
    "a value made twice": (lambda: of([node("Relu", "x", "y"), node("Exp", "x", "y")]), "made twice"),
    "an input made anew": (lambda: of([node("Relu", "x", "x"), node("Exp", "x", "y")]), "made twice"),
    "an operator set of the future": (lambda: graph_of([node("Relu", "x", "y")], X, ["y"], opset=999), "newer"),
    "an unknown operator": (lambda: of([node("Evil\x1b[2J", "x", "y")]), r"Evil\\x1b\[2J"),
    "an operator that is given nothing": (lambda: of([node("Conv", "", "c"), node("Add", "x c", "y")]), "Conv 'c'"),
    "attributes of other kinds": (lambda: of([node("Softmax", "x", "y", axis="a")]), "Softmax 'y'"),
    "a constant of 2^34": (lambda: of([node("ConstantOfShape", "s", "c"), *FEED], s=[HUGE]), "ConstantOfShape"),
    "a constant below zero": (lambda: of([node("ConstantOfShape", "s", "c"), *FEED], s=[-5]), "0 or more"),
    "a range of 2^34": (
        lambda: of([node("Range", "a b s", "r"), node("Cast", "r", "c", to=1), *FEED], a=0, b=HUGE, s=1), "Range",
    ),
    "expanded": (lambda: of([node("Expand", "x s", "c"), *FEED], s=[HUGE, 4]), "Expand"),
    "tiled": (lambda: of([node("Tile", "x s", "c"), *FEED], s=[HUGE, 1]), "Tile"),
    "padded": (lambda: of([node("Pad", "x s", "c"), *FEED], s=[0, 0, 0, HUGE]), "Pad"),
    "resized": (lambda: of([node("Resize", "x - - s", "c"), *FEED], s=[1, HUGE]), "Resize"),
    "resized by cubes": (
        lambda: of([node("Resize", "x - - s", "c", mode="cubic"), *FEED], port("x", [1, 1 << 20]), s=[1, 1 << 19]), "Resize",
    ),
    "one of many": (
        lambda: of([node("Cast", "x", "i", to=7), node("OneHot", "i n v", "c"), *FEED], n=[HUGE], v=np.float32([0, 1])),
        "OneHot",
    ),
    "broadcast": (
        lambda: of([node("Add", "a b", "c"), node("Reshape", "c s", "d"), node("ReduceSum", "d", "e"), node("Add", "x e", "y")],
                   s=[-1], a=np.ones((1 << 16, 1), np.int32), b=np.ones((1, 1 << 16), np.int32)), "Add 'c'",
    ),
    "joined with itself": (lambda: doubled(40, "x"), "Concat"),
    "integers joined with themselves": (lambda: doubled(40, "k", [node("Cast", "c", "k", to=7)]), "Concat"),
    "a window of 2^40": (
        lambda: of([node("AveragePool", "x", "c", kernel_shape=[1 << 40], pads=[1 << 40] * 2), *FEED], port("x", [1, 1, 4])),
        "AveragePool",
    ),
    "graphs in graphs": (lambda: nested_branches(30), "too deep|deeper"),
    "two graphs in each": (lambda: nested_branches(20), "branches within one another"),
    "functions of functions": (lambda: functions(10, 12), "more nodes"),
    "a function of itself": (lambda: functions(1, 3, itself=True), "themselves"),
    "a loop without end": (lambda: endless(""), "more than 1024 turns"),
    "a loop of 2^40": (lambda: endless("turns"), "Loop|more than"),
    "an input of 2^40": (lambda: of([node("Relu", "x", "y")], port("x", [1 << 20, 1 << 20])), "give them"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said(name: str, tmp_path: Path) -> None:
    make, said = CASES[name]
    folder = tmp_path / "sub"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "own.bin").write_bytes(b"\0" * 16)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(folder / "pipe.bin")
    (folder / "m.onnx").write_bytes(make().SerializeToString())
    began = time.process_time()
    with pytest.raises(ArtifactError, match=said) as found:
        load_model(folder / "m.onnx")
    assert "\x1b" not in str(found.value)
    assert time.process_time() - began < 20


def bad_bytes() -> list[bytes]:
    whole = of([node("MatMul", "x w", "y")], w=np.ones((4, 3), np.float32)).SerializeToString()
    return [
        b"",
        b"\0",
        b"PK\x03\x04",
        whole[: len(whole) // 2],
        whole[:-1],
        b"\xff" * 100,
        onnx.ModelProto().SerializeToString(),
    ]


@pytest.mark.parametrize("place", range(7))
def test_other_bytes_are_no_onnx_file(place: int, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(bad_bytes()[place])
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        load_model(tmp_path / "m.onnx")


def test_a_file_with_bits_turned_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever is raised is the documented error."""
    nodes = [node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "b"), node("Reshape", "b s", "y")]
    whole = of(nodes, port("x", [1, 2, 4, 4]), w=np.ones((2, 2, 3, 3), np.float32), s=[1, -1]).SerializeToString()
    random, refused = np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 2):
            data[place] ^= 1 << int(random.integers(8))
        (tmp_path / "m.onnx").write_bytes(bytes(data))
        try:
            load_model(tmp_path / "m.onnx")
        except ArtifactError:
            refused += 1
    assert refused
