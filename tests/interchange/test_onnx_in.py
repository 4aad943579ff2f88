"""Models of ONNX files: the numbers of ONNX Runtime, derivatives, names, layouts, and all that is done with a model here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from interchange.onnx_graphs import as_tuple, assert_like_onnxruntime, by_onnxruntime, graph_of, imported, node, port
from onnx import TensorProto, helper

import lepton_jax as lepton
from lepton_jax.core import paths
from lepton_jax.core.errors import ArtifactError
from lepton_jax.interchange import from_onnx
from lepton_jax.pruning import channels


def numbers(seed: int, *shape: int, scale: float = 0.4) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def cnn() -> onnx.ModelProto:
    """Convolution, batch norm, pooling, a residual sum and a dense layer: of any batch."""
    tensors = {
        "stem/w": numbers(1, 16, 3, 3, 3), "stem/b": numbers(2, 16), "block/w": numbers(3, 16, 16, 3, 3),
        "bn/scale": 1 + numbers(4, 16), "bn/bias": numbers(5, 16), "bn/mean": numbers(6, 16), "bn/var": numbers(7, 16) ** 2 + 1,
        "fc.weight": numbers(8, 10, 16), "fc.bias": numbers(9, 10), "shape": np.array([0, -1]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x stem/w stem/b", "a", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "a", "b"),
        node("Conv", "b block/w", "c", auto_pad="SAME_UPPER"),
        node("BatchNormalization", "c bn/scale bn/bias bn/mean bn/var", "d", epsilon=1e-3), node("Add", "d b", "e"),
        node("Relu", "e", "f"), node("GlobalAveragePool", "f", "g"), node("Reshape", "g shape", "h"),
        node("Gemm", "h fc.weight fc.bias", "y", transB=1),
    ]  # fmt: skip
    return graph_of(nodes, [port("x", ["n", 3, 8, 8])], ["y"], tensors)


def test_a_convolutional_network_is_read_with_names_layouts_and_state(tmp_path: Path) -> None:
    x = numbers(0, 4, 3, 8, 8, scale=1)
    model = assert_like_onnxruntime(cnn(), tmp_path, x)
    shapes = {path: leaf.shape for path, leaf in paths.flatten(model.variables).items()}
    assert shapes == {
        "params/stem/w": (3, 3, 3, 16), "params/stem/b": (16,), "params/block/w": (3, 3, 16, 16), "params/bn/scale": (16,),
        "params/bn/bias": (16,), "state/bn/mean": (16,), "state/bn/var": (16,), "params/fc.weight": (16, 10),
        "params/fc.bias": (10,),
    }  # fmt: skip
    assert model.apply.leaves["params/fc.weight"].name == "fc.weight"
    kernel = model.variables["params"]["stem"]["w"]
    np.testing.assert_array_equal(model.apply.leaves["params/stem/w"].as_in_file(kernel), numbers(1, 16, 3, 3, 3))
    own = imported(cnn(), tmp_path)
    assert own.example[0].shape[1:] == (3, 8, 8)  # found, where none are given
    np.testing.assert_array_equal(own(x[:1]), imported(cnn(), tmp_path, x)(x[:1]))  # of any batch


def test_all_that_is_done_with_a_model_is_done_with_an_imported_one(tmp_path: Path) -> None:
    x = numbers(0, 4, 3, 8, 8, scale=1)
    model = imported(cnn(), tmp_path)
    gradient = jax.grad(lambda params: (model.apply({**model.variables, "params": params}, x) ** 2).sum())(
        model.variables["params"]
    )
    assert all(bool(jnp.isfinite(leaf).all()) and bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient))
    model.save(tmp_path / "m.lepton")
    for batch in (4, 1):
        np.testing.assert_array_equal(lepton.load_model(tmp_path / "m.lepton")(x[:batch]), model(x[:batch]))
    roles = lepton.graph.roles(model.apply, model.variables, *model.example)
    kinds = {path: role.kind for path, role in roles.items()}
    assert {path for path, kind in kinds.items() if kind == "weight"} == {"params/stem/w", "params/block/w", "params/fc.weight"}
    assert kinds["state/bn/mean"] == "statistic"
    small = lepton.quantize_model(model, 8)
    change = np.linalg.norm(small(x) - model(x)) / np.linalg.norm(model(x))
    assert change < 2e-2
    plan = channels.plan(model.apply, model.variables, x, fraction=0.5)
    shrunk = plan.shrink(model.variables)
    assert shrunk["params"]["stem"]["w"].shape == (3, 3, 3, 8)
    assert plan.rewrite(model.apply)(shrunk, x).shape == (4, 10)


def test_load_model_takes_the_suffix(tmp_path: Path) -> None:
    x = numbers(0, 2, 3, 8, 8)
    (tmp_path / "m.ONNX").write_bytes(cnn().SerializeToString())
    np.testing.assert_allclose(lepton.load_model(tmp_path / "m.ONNX")(x), by_onnxruntime(cnn(), x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(kind: str, direction: str, tmp_path: Path) -> None:
    gates, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (direction == "bidirectional")
    tensors = {"w": numbers(1, d, gates * 5, 3), "r": numbers(2, d, gates * 5, 5), "b": numbers(3, d, 2 * gates * 5)}
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    outs = "y h c" if kind == "LSTM" else "y h"
    layer = node(kind, "x w r b - h0" + (" c0" if kind == "LSTM" else ""), outs, hidden_size=5, direction=direction, **more)
    states = [port("h0", [d, "n", 5])] + ([port("c0", [d, "n", 5])] if kind == "LSTM" else [])
    file = graph_of([layer], [port("x", ["t", "n", 3]), *states], outs.split(), tensors)
    given = [numbers(4, 7, 2, 3), *(numbers(5 + i, d, 2, 5) for i in range(len(states)))]
    model = assert_like_onnxruntime(file, tmp_path, *given)
    assert model.variables["params"]["w"].shape == (d, 3, gates * 5)


def test_sequences_of_different_lengths(tmp_path: Path) -> None:
    tensors = {"w": numbers(1, 2, 20, 3), "r": numbers(2, 2, 20, 5), "lens": np.array([7, 3, 5], np.int32)}
    layer = node("LSTM", "x w r - lens", "y h c", hidden_size=5, direction="bidirectional")
    assert_like_onnxruntime(graph_of([layer], [port("x", [7, 3, 3])], ["y", "h", "c"], tensors), tmp_path, numbers(0, 7, 3, 3))


def branches(then: list[Any], other: list[Any], **tensors: np.ndarray) -> onnx.NodeProto:
    made = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    bodies = {
        f"{name}_branch": helper.make_graph(nodes, name, [], [port(nodes[-1].output[0], None)], made)
        for name, nodes in (("then", then), ("else", other))
    }
    return helper.make_node("If", ["c"], ["y"], **bodies)


def test_a_branch_by_a_value_and_one_by_a_shape(tmp_path: Path) -> None:
    by = branches([node("MatMul", "x w", "t")], [node("Neg", "x", "e")], w=numbers(1, 4, 4))
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"), by]
    file = graph_of(nodes, [port("x", ["n", 4])], ["y"], {"zero": np.zeros((), np.float32)})
    for sign in (1, -1):
        assert_like_onnxruntime(file, tmp_path, sign * abs(numbers(2, 3, 4)))
    by_shape = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Equal", "n three", "c"), by]
    tensors = {"zero": np.array(0), "three": np.array(3)}
    for n in (3, 2):
        assert_like_onnxruntime(graph_of(by_shape, [port("x", ["n", 4])], ["y"], tensors), tmp_path, numbers(2, n, 4))


def loop_file(turns: Any) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("MatMul", "v w", "p"), node("Tanh", "p", "v2"), node("Identity", "go", "go2"), node("ReduceSum", "v2", "left")],
        "body",
        [port("i", [], TensorProto.INT64), port("go", [], TensorProto.BOOL), port("v", None)],
        [port("go2", [], TensorProto.BOOL), port("v2", None), port("left", None)],
    )
    loop = helper.make_node("Loop", ["turns", "", "x"], ["y", "all"], body=body)
    return graph_of([loop], [port("x", [2, 4])], ["y", "all"], {"turns": np.array(turns), "w": numbers(1, 4, 4)})


@pytest.mark.parametrize("turns", [0, 1, 3, 20])
def test_loops_of_known_length(turns: int, tmp_path: Path) -> None:
    model = assert_like_onnxruntime(loop_file(turns), tmp_path, numbers(0, 2, 4))
    gradient = jax.grad(lambda v: jnp.sum(model.apply(v, numbers(0, 2, 4))[0]))(model.variables)
    assert bool(jnp.isfinite(gradient["params"]["w"]).all())


def test_a_loop_that_ends_by_a_value(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Add", "v v", "v2"), node("ReduceMax", "v2", "m", keepdims=0), node("Less", "m limit", "go2")],
        "body",
        [port("i", [], TensorProto.INT64), port("go", [], TensorProto.BOOL), port("v", None)],
        [port("go2", [], TensorProto.BOOL), port("v2", None)],
    )
    for turns in ("", "turns"):
        loop = helper.make_node("Loop", [turns, "on", "x"], ["y"], body=body)
        tensors = {"on": np.array(True), "limit": np.array(100, np.float32), "turns": np.array(50)}
        for x in (1.0, 30.0):
            assert_like_onnxruntime(
                graph_of([loop], [port("x", [3])], ["y"], tensors), tmp_path, np.array([x, 0.5, 0.25], np.float32)
            )


def test_local_functions_are_written_out(tmp_path: Path) -> None:
    inner = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 21)], [])
    scaled = node("LeakyRelu", "t", "b")
    scaled.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    outer = helper.make_function(
        "mine", "Act", ["a"], ["b"], [node("Twice", "a", "t", domain="mine"), scaled],
        [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)], ["slope"],
    )  # fmt: skip
    nodes = [node("Act", "x", "h", domain="mine", slope=0.25), node("Act", "h", "y", domain="mine", slope=0.125)]
    file = graph_of(nodes, [port("x", [3, 4])], ["y"], functions=[inner, outer], domains={"mine": 1})
    assert_like_onnxruntime(file, tmp_path, numbers(0, 3, 4))


def test_shapes_that_are_computed_keep_their_names(tmp_path: Path) -> None:
    """A reshape by a computed shape, of a batch and a length of any size; and the same file of both."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 rest", "to", axis=0), node("Reshape", "x to", "r"), node("MatMul", "r w", "y"),
    ]  # fmt: skip
    tensors = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1, 4]), "w": numbers(1, 4, 5)}
    file = graph_of(nodes, [port("x", ["n", "t", 2, 2])], ["y"], tensors)
    model = assert_like_onnxruntime(file, tmp_path, numbers(0, 3, 6, 2, 2))
    model.save(tmp_path / "m.lepton", axes={0: "n", 1: "t"})
    x = numbers(2, 5, 7, 2, 2)
    np.testing.assert_array_equal(lepton.load_model(tmp_path / "m.lepton")(x), model(x))


def test_integers_that_are_scaled_are_packed_leaves(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (6, 4)).astype(np.int8)
    tensors = {"q": codes, "s": abs(numbers(1, 6)) + 0.01, "z": np.arange(6, dtype=np.int8), "b": numbers(2, 6)}
    nodes = [node("DequantizeLinear", "q s z", "w", axis=0), node("Gemm", "x w b", "y", transB=1)]
    model = assert_like_onnxruntime(graph_of(nodes, [port("x", ["n", 4])], ["y"], tensors), tmp_path, numbers(3, 5, 4))
    leaf = model.variables["params"]["w"]
    assert (type(leaf).__name__, leaf.shape, leaf.format.bits) == ("QArray", (4, 6), 8)
    np.testing.assert_array_equal(leaf.qvalue, codes.T)


def test_four_bits_in_blocks_are_packed_leaves(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (32, 6))
    q = helper.make_tensor("q", TensorProto.UINT4, codes.shape, codes.reshape(-1))
    nodes = [node("DequantizeLinear", "q s", "w", axis=0, block_size=16), node("MatMul", "x w", "y")]
    file = graph_of(nodes, [port("x", ["n", 32])], ["y"], {"s": abs(numbers(1, 2, 6)) + 0.01})
    file.graph.initializer.append(q)
    model = assert_like_onnxruntime(file, tmp_path, numbers(3, 5, 32))
    leaf = model.variables["params"]["w"]
    assert (leaf.format.bits, leaf.format.group_size) == (4, 16)
    np.testing.assert_array_equal(leaf.qvalue, codes)


def test_a_network_of_rounded_numbers(tmp_path: Path) -> None:
    """QLinearConv, pooling of codes, and out again: all bits of ONNX Runtime, and a derivative through the rounding."""
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "xs": np.float32(0.03), "xz": np.uint8(120), "w": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "ws": (abs(numbers(1, 8)) * 0.01 + 0.001).astype(np.float32), "wz": np.zeros(8, np.int8), "ys": np.float32(0.02),
        "yz": np.uint8(3), "b": random.integers(-500, 500, 8).astype(np.int32),
    }  # fmt: skip
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    nodes = [
        node("QuantizeLinear", "x xs xz", "q"), node("QLinearConv", "q xs xz w ws wz ys yz b", "c", pads=[1, 1, 1, 1]),
        node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]), node("DequantizeLinear", "p ys yz", "y"),
    ]  # fmt: skip
    file = graph_of(nodes, [port("x", ["n", 3, 8, 8])], ["y"], tensors)
    x = numbers(2, 2, 3, 8, 8, scale=1)
    model = assert_like_onnxruntime(file, tmp_path, x, rtol=1e-7)
    leaf = model.variables["params"]["w"]
    assert leaf.shape == (3, 3, 3, 8)
    gradient = jax.grad(lambda v: jnp.sum(model.apply(v, x) ** 2))(model.dense)["params"]["w"]
    assert bool(jnp.isfinite(gradient).all())
    assert bool((gradient != 0).any())


def test_operators_of_integers_round_as_the_engine_does(tmp_path: Path) -> None:
    w = np.random.default_rng(1).integers(-127, 128, (12, 7)).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w z", "i"), node("Cast", "i", "f", to=1),
        node("Mul", "s ws", "both"), node("Mul", "f both", "y"),
    ]  # fmt: skip
    tensors = {"w": w, "ws": np.array(0.01, np.float32)}
    model = assert_like_onnxruntime(graph_of(nodes, [port("x", [5, 12])], ["y"], tensors), tmp_path, numbers(0, 5, 12))
    np.testing.assert_array_equal(model.variables["params"]["w"].qvalue, w)


def test_tensors_that_decide_shapes_are_constants(tmp_path: Path) -> None:
    nodes = [node("Resize", "x - scales", "r", mode="nearest"), node("Mul", "r gain", "y")]
    tensors = {"scales": np.array([1, 1, 2, 2], np.float32), "gain": numbers(1, 3, 1, 1)}
    model = assert_like_onnxruntime(
        graph_of(nodes, [port("x", [1, 3, 4, 4])], ["y"], tensors), tmp_path, numbers(0, 1, 3, 4, 4)
    )
    assert list(paths.flatten(model.variables)) == ["params/gain"]


def test_a_weight_that_two_branches_read_is_one_variable_in_one_layout(tmp_path: Path) -> None:
    by = branches([node("Conv", "x k", "t")], [node("Conv", "x k", "d"), node("Neg", "d", "e")])
    file = graph_of(
        [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"), by], [port("x", [1, 3, 5, 5])], ["y"],
        {"zero": np.zeros((), np.float32), "k": numbers(1, 4, 3, 2, 2)},
    )  # fmt: skip
    model = assert_like_onnxruntime(file, tmp_path, numbers(0, 1, 3, 5, 5))
    assert {path: leaf.shape for path, leaf in paths.flatten(model.variables).items()} == {"params/k": (2, 2, 3, 4)}


def test_names_of_numbers_come_from_the_nodes_that_read_them(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "onnx::Conv_12", "13"], ["y"], name="/encoder/layer.0/conv/Conv")]
    tensors = {"onnx::Conv_12": numbers(1, 4, 3, 1, 1), "13": numbers(2, 4)}
    model = imported(graph_of(nodes, [port("x", [1, 3, 5, 5])], ["y"], tensors), tmp_path)
    assert list(paths.flatten(model.variables)) == [
        "params/encoder/layer.0/conv/bias", "params/encoder/layer.0/conv/kernel"
    ]  # fmt: skip


def test_names_that_go_on_from_others_are_told_apart(tmp_path: Path) -> None:
    nodes = [node("Add", "x a", "p"), node("Add", "p a/b", "q"), node("Add", "q a:0", "y")]
    tensors = {"a": numbers(1, 4), "a/b": numbers(2, 4), "a:0": numbers(3, 4)}
    model = assert_like_onnxruntime(graph_of(nodes, [port("x", [4])], ["y"], tensors), tmp_path, numbers(0, 4))
    assert len(paths.flatten(model.variables)) == 3


def test_unknown_operators_are_named_all_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], name="first", domain="ai.mine"),
        helper.make_node("Bar", ["a"], ["b"], name="second"),
        helper.make_node("Foo", ["b"], ["y"], name="third", domain="ai.mine"),
    ]
    with pytest.raises(ArtifactError, match=r"no rule for the operators ai\.mine:Foo at first, third; Bar at second"):
        imported(graph_of(nodes, [port("x", [4])], ["y"], domains={"ai.mine": 1}), tmp_path)


def test_a_shape_by_values_is_refused_by_name(tmp_path: Path) -> None:
    file = graph_of([helper.make_node("Reshape", ["x", "to"], ["y"], name="here")],
                    [port("x", [4]), port("to", [2], TensorProto.INT64)], ["y"])  # fmt: skip
    with pytest.raises(ArtifactError, match=r"Reshape .here. .*input 1 must be known"):
        imported(file, tmp_path)


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    model = imported(cnn(), tmp_path)
    with pytest.raises(ValueError, match=r"needs float32\[any, 3, 8, 8\]"):
        model(numbers(0, 1, 4, 8, 8))
    with pytest.raises(TypeError, match=r"m.onnx takes 1 inputs \(x\); got 2"):
        model.apply(model.variables, 1.0, 2.0)


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    nodes = [node("Sub", "b a", "second"), node("Cast", "n", "third", to=1), node("Add", "a b", "first")]
    file = graph_of(nodes, [port("b", ["k"]), port("n", [], TensorProto.INT64), port("a", ["k"])], ["first", "second", "third"])
    assert_like_onnxruntime(file, tmp_path, numbers(0, 3), np.array(7), numbers(1, 3))
    b, n, a = numbers(0, 3), np.array(7), numbers(1, 3)
    got = as_tuple(imported(file, tmp_path)(b, n, a))
    np.testing.assert_array_equal(got[1], b - a)


def test_a_default_of_an_input_is_a_variable(tmp_path: Path) -> None:
    file = graph_of([node("Add", "x w", "y")], [port("x", [3]), port("w", [3])], ["y"], {"w": numbers(1, 3)})
    model = imported(file, tmp_path)
    assert len(model.example) == 1
    assert list(paths.flatten(model.variables)) == ["params/w"]


def test_external_tensors_are_read_beside_the_file(tmp_path: Path) -> None:
    proto = graph_of([node("MatMul", "x w", "y")], [port("x", ["n", 40])], ["y"], {"w": numbers(1, 40, 30)})
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    model = from_onnx(tmp_path / "e.onnx")
    np.testing.assert_array_equal(model.variables["params"]["w"], numbers(1, 40, 30))


def gates_in_branches() -> onnx.ModelProto:
    """Two branches that both reorder the gates of one LSTM's weights, as exporters write them."""
    bodies = {}
    for name in ("then", "else"):
        nodes = [
            *(node("Slice", f"{w} s{i} e{i} zero", f"{name}_{w}{i}") for w in ("wi", "wh") for i in range(3)),
            *(node("Concat", " ".join(f"{name}_{w}{i}" for i in range(3)), f"{name}_{w}", axis=0) for w in ("wi", "wh")),
            *(node("Unsqueeze", f"{name}_{w} zero", f"{name}_{w}u") for w in ("wi", "wh")),
            node("LSTM", f"x {name}_wiu {name}_whu", f"- {name}_h", hidden_size=16), node("Neg", f"{name}_h", f"{name}_n"),
        ]  # fmt: skip
        marks = {"zero": np.array([0]), **{f"{m}{i}": np.array([n]) for i, (a, b) in enumerate(((0, 16), (48, 64), (16, 48)))
                                          for m, n in (("s", a), ("e", b))}}  # fmt: skip
        tensors = [onnx.numpy_helper.from_array(array, key) for key, array in marks.items()]
        out = f"{name}_{'n' if name == 'else' else 'h'}"
        bodies[f"{name}_branch"] = helper.make_graph(nodes, name, [], [port(out, None)], tensors)
    by = helper.make_node("If", ["c"], ["y"], **bodies)
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s limit", "c"), by]
    tensors = {"limit": np.zeros((), np.float32), "wi": numbers(1, 64, 48), "wh": numbers(2, 64, 16)}
    return graph_of(nodes, [port("x", [5, 2, 48])], ["y"], tensors)


def test_weights_whose_gates_are_reordered_in_branches_are_one_variable_each(tmp_path: Path) -> None:
    for sign in (1, -1):
        model = assert_like_onnxruntime(gates_in_branches(), tmp_path, sign * abs(numbers(0, 5, 2, 48)))
    leaves = paths.flatten(model.variables)
    assert {path: leaf.shape for path, leaf in leaves.items()} == {"params/wh": (1, 16, 64), "params/wi": (1, 48, 64)}
    roles = lepton.graph.roles(model.apply, model.variables, *model.example)
    assert all(role.is_weight for role in roles.values())


@pytest.mark.parametrize("seed", range(4))
def test_largest_of_regions(seed: int, tmp_path: Path) -> None:
    """Regions over the edge, upside down and of one element too, as ONNX Runtime has them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, 7, 9)).astype(np.float32)
    corners = rng.integers(-6, 24, size=(11, 4)) / 2
    rois = np.concatenate([rng.integers(0, 2, size=(11, 1)), corners], axis=1).astype(np.float32)
    made = node("MaxRoiPool", "x r", "y", pooled_shape=[3, 2], spatial_scale=0.5 + seed / 4)
    model = graph_of([made], [port("x", (2, 3, 7, 9)), port("r", (11, 5))], ["y"])
    found = imported(model, tmp_path)(x, rois)
    np.testing.assert_array_equal(found, by_onnxruntime(model, x, rois)[0])
