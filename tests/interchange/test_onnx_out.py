"""Imported models back as ONNX files: the same graph, packed weights as codes, and the numbers of the model in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from interchange.onnx_graphs import as_tuple, by_onnxruntime, graph_of, imported, node, port
from interchange.test_onnx_in import gates_in_branches

import lepton_jax as lepton
from lepton_jax import Model
from lepton_jax.formats import Uniform
from lepton_jax.interchange import from_onnx, to_onnx
from lepton_jax.pruning import channels


def numbers(seed: int, *shape: int, scale: float = 0.4) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def network(opset: int = 21) -> onnx.ModelProto:
    """Convolutions, a transposed one, an LSTM of two directions and a dense layer."""
    tensors = {
        "k": numbers(1, 16, 3, 3, 3), "kb": numbers(2, 16), "t": numbers(3, 16, 8, 2, 2), "to": np.array([0, 8, 256]),
        "w": numbers(4, 2, 64, 256, scale=0.1), "r": numbers(5, 2, 64, 16), "g": numbers(6, 10, 32), "gb": numbers(7, 10),
        "flat": np.array([-1, 32]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x k kb", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "b"),
        node("ConvTranspose", "b t", "c", strides=[2, 2]), node("Reshape", "c to", "d"),
        node("LSTM", "d w r", "e - -", hidden_size=16, direction="bidirectional"),
        node("Reshape", "e flat", "f"), node("Gemm", "f g gb", "y", transB=1),
    ]  # fmt: skip
    return graph_of(nodes, [port("x", ["n", 3, 8, 8])], ["y"], tensors, opset=opset)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [one.op_type for one in model.graph.node]


def assert_same_in_the_engine(model: Model, path: Path, *inputs: np.ndarray, rtol: float = 2e-6) -> None:
    for a, b in zip(as_tuple(model(*inputs)), by_onnxruntime(onnx.load(path), *inputs)):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b)


def test_a_model_that_was_not_changed_is_the_file_again(tmp_path: Path) -> None:
    model = imported(network(), tmp_path)
    to_onnx(model, tmp_path / "again.onnx")
    first, again = onnx.load(tmp_path / "m.onnx"), onnx.load(tmp_path / "again.onnx")
    assert kinds(first) == kinds(again)
    tensors = [{t.name: onnx.numpy_helper.to_array(t) for t in one.graph.initializer} for one in (first, again)]
    assert sorted(tensors[0]) == sorted(tensors[1])
    for name, array in tensors[0].items():
        np.testing.assert_array_equal(array, tensors[1][name])


@pytest.mark.parametrize("opset", [21, 13, 11])
def test_eight_bits_are_codes_and_scales(opset: int, tmp_path: Path) -> None:
    x = numbers(0, 2, 3, 8, 8, scale=1)
    small = lepton.quantize_model(imported(network(opset), tmp_path), 8)
    to_onnx(small, tmp_path / "q.onnx")
    assert os.path.getsize(tmp_path / "q.onnx") * 3.2 < os.path.getsize(tmp_path / "m.onnx")
    assert kinds(onnx.load(tmp_path / "q.onnx")).count("DequantizeLinear") == 5
    assert_same_in_the_engine(small, tmp_path / "q.onnx", x)
    again = from_onnx(tmp_path / "q.onnx")
    leaf, own = (m.variables["params"]["k"] for m in (again, small))
    np.testing.assert_array_equal(leaf.qvalue, own.qvalue)
    np.testing.assert_array_equal(leaf.scale, own.scale)


@pytest.mark.parametrize(
    "fmt", ["int4", "int4_g32", Uniform(8, symmetric=False, channel_axis="out"), Uniform(3, group_size=32), Uniform(8)], ids=str
)
def test_other_formats_of_even_levels(fmt: object, tmp_path: Path) -> None:
    x = numbers(0, 2, 3, 8, 8, scale=1)
    small = lepton.quantize_model(imported(network(), tmp_path), fmt, select="*/[wg]")
    to_onnx(small, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    assert kinds(model).count("DequantizeLinear") == 2
    assert_same_in_the_engine(small, tmp_path / "q.onnx", x)


def test_four_bits_take_half_a_byte_each(tmp_path: Path) -> None:
    file = graph_of([node("MatMul", "x w", "y")], [port("x", ["n", 128])], ["y"], {"w": numbers(1, 128, 256)}, opset=15)
    small = lepton.quantize_model(imported(file, tmp_path), "int4")
    to_onnx(small, tmp_path / "q.onnx")
    codes = [t for t in onnx.load(tmp_path / "q.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert [len(t.raw_data) for t in codes] == [128 * 256 // 2]
    assert_same_in_the_engine(small, tmp_path / "q.onnx", numbers(0, 3, 128))


def test_a_file_that_cannot_be_converted_has_casts_and_products(tmp_path: Path) -> None:
    """`Upsample` ends with operator set 9, and an operator of an engine's own has no converter."""
    nodes = [node("Upsample", "x s", "u"), node("Conv", "u k", "y")]
    tensors = {"s": np.array([1, 1, 2, 2], np.float32), "k": numbers(1, 8, 3, 3, 3)}
    file = graph_of(nodes, [port("x", [1, 3, 6, 6])], ["y"], tensors, opset=9)
    small = lepton.quantize_model(imported(file, tmp_path), 8)
    to_onnx(small, tmp_path / "q.onnx")
    assert_same_in_the_engine(small, tmp_path / "q.onnx", numbers(0, 1, 3, 6, 6))


def test_tuned_variables_are_written(tmp_path: Path) -> None:
    x = numbers(0, 2, 3, 8, 8, scale=1)
    model = imported(network(), tmp_path)
    tuned = dataclasses.replace(model, variables=jax.tree.map(lambda leaf: leaf * 1.5, model.variables))
    to_onnx(tuned, tmp_path / "t.onnx")
    assert_same_in_the_engine(tuned, tmp_path / "t.onnx", x)


def test_models_of_other_shapes_and_functions_are_exported(tmp_path: Path) -> None:
    x = numbers(0, 2, 3, 8, 8, scale=1)
    model = imported(network(), tmp_path, x)
    plan = channels.plan(model.apply, model.variables, x, fraction=0.25)
    shrunk = Model(plan.rewrite(model.apply), plan.shrink(model.variables), (x,))
    to_onnx(shrunk, tmp_path / "s.onnx", axes={})  # loops are of known length
    assert os.path.getsize(tmp_path / "s.onnx") < os.path.getsize(tmp_path / "m.onnx")
    assert_same_in_the_engine(shrunk, tmp_path / "s.onnx", x, rtol=1e-5)
    factors = lepton.factorize_model(model, 0.25, select="*/g")
    to_onnx(factors, tmp_path / "f.onnx", axes={})
    assert_same_in_the_engine(factors, tmp_path / "f.onnx", x, rtol=1e-5)


def test_packed_weights_of_a_file_go_out_as_they_came_in(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        "s1": np.asarray(np.float32(0.03)), "z1": np.asarray(np.uint8(120)), "s2": np.asarray(np.float32(0.02)),
        "z2": np.asarray(np.uint8(3)), "w": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "ws": abs(numbers(1, 8)) * 0.01 + 0.001, "wz": np.zeros(8, np.int8),
        "q": random.integers(-128, 128, (8, 5)).astype(np.int8), "qs": abs(numbers(2, 5)) + 0.01,
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x s1 z1", "a"), node("QLinearConv", "a s1 z1 w ws wz s2 z2", "b"),
        node("DequantizeLinear", "b s2 z2", "c"), node("GlobalAveragePool", "c", "d"), node("Flatten", "d", "e"),
        node("DequantizeLinear", "q qs", "m", axis=1), node("MatMul", "e m", "y"),
    ]  # fmt: skip
    model = imported(graph_of(nodes, [port("x", ["n", 3, 8, 8])], ["y"], tensors), tmp_path)
    to_onnx(model, tmp_path / "again.onnx")
    assert_same_in_the_engine(model, tmp_path / "again.onnx", numbers(3, 2, 3, 8, 8, scale=1))
    assert kinds(onnx.load(tmp_path / "again.onnx")).count("QLinearConv") == 1


def test_a_weight_within_a_branch_is_written_where_all_see_it(tmp_path: Path) -> None:
    inner = [
        onnx.helper.make_graph([node("MatMul", "x w", f"{n}y")], n, [], [port(f"{n}y", None)],
                               [onnx.numpy_helper.from_array(numbers(i, 64, 48), "w")] if n == "t" else [])
        for i, n in enumerate("te")
    ]  # fmt: skip
    inner[1] = onnx.helper.make_graph(
        [node("MatMul", "x v", "ey")], "e", [], [port("ey", None)], [onnx.numpy_helper.from_array(numbers(9, 64, 48), "v")]
    )
    by = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1])
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"), by]
    file = graph_of(nodes, [port("x", ["n", 64])], ["y"], {"zero": np.zeros((), np.float32)})
    small = lepton.quantize_model(imported(file, tmp_path), 8)
    to_onnx(small, tmp_path / "q.onnx")
    for sign in (1, -1):
        assert_same_in_the_engine(small, tmp_path / "q.onnx", sign * abs(numbers(0, 3, 64)))


def test_weights_that_branches_move_are_written_moved_and_once(tmp_path: Path) -> None:
    small = lepton.quantize_model(imported(gates_in_branches(), tmp_path), 8)
    to_onnx(small, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    assert kinds(model).count("DequantizeLinear") == 2
    assert os.path.getsize(tmp_path / "q.onnx") < 0.4 * os.path.getsize(tmp_path / "m.onnx")
    for sign in (1, -1):
        assert_same_in_the_engine(small, tmp_path / "q.onnx", sign * abs(numbers(0, 5, 2, 48)))


def test_wrong_calls_are_named(tmp_path: Path) -> None:
    model = imported(network(), tmp_path)
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        to_onnx(model, tmp_path / "m.bin")
    with pytest.raises(TypeError, match="to_onnx: model must be a Model"):
        to_onnx(3, tmp_path / "m.onnx")  # type: ignore[arg-type]
