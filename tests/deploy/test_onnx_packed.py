"""Packed leaves in ONNX files: small there, and the numbers of what they unpack to."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn

from lepton_jax import Model, deploy, unpack
from lepton_jax.formats import Float8, NormalFloat4, Uniform
from lepton_jax.leaves import CP, LowRank, Sparse, Tucker
from lepton_jax.quantization import Codebook, quantize


class Net(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(50, 64)(ids)
        x = nn.relu(nn.Conv(64, (3,))(x))
        return nn.Dense(64)(nn.relu(nn.DenseGeneral((4, 16))(x)).reshape(*ids.shape, 64))


NET, IDS = Net(), jax.random.randint(jax.random.key(0), (2, 9), 0, 50)
VARIABLES = NET.init(jax.random.key(1), IDS)


def low_rank(w, rank=4):
    u, s, v = np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]), full_matrices=False)
    return LowRank(jnp.asarray(u[:, :rank] * s[:rank]), jnp.asarray(v[:rank]), w.shape)


def int8_factors(w):
    leaf = low_rank(w)
    return LowRank(*(quantize(part, Uniform(8, channel_axis=1)) for part in (leaf.u, leaf.v)), leaf.shape)


def matrices(change):
    return lambda w: change(w) if w.shape in ((50, 64), (64, 64)) else w


FORMS = {
    "int8": (lambda w: quantize(w, Uniform(8, channel_axis="out")), 3.0),
    "int8 affine": (lambda w: quantize(w, Uniform(8, symmetric=False)), 3.0),
    "int4": (lambda w: quantize(w, Uniform(4, channel_axis="out")), 4.5),
    "int4 in groups": (matrices(lambda w: quantize(w, Uniform(4, group_size=16, group_axis=0))), 1.15),
    "int4 affine in groups": (matrices(lambda w: quantize(w, Uniform(4, False, group_size=16, group_axis=0))), 1.15),
    "int4 in groups that do not fit": (matrices(lambda w: quantize(w, Uniform(4, group_size=12, group_axis=0))), 1.15),
    "int8 in groups": (matrices(lambda w: quantize(w, Uniform(8, group_size=32, group_axis=1))), 1.15),
    "nf4": (matrices(lambda w: quantize(w, NormalFloat4(group_size=16, group_axis=0))), 1.15),
    "float8": (lambda w: quantize(w, Float8()), 3.0),
    "codebook": (lambda w: quantize(w, Codebook(bits=3)), 4.5),
    "low rank": (lambda w: low_rank(w), 3.0),
    "low rank of int8": (matrices(int8_factors), 1.15),
    "sparse": (lambda w: Sparse.from_dense(jnp.where(jnp.abs(w) > 0.1, w, 0)), 0.9),
}


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "m.onnx"
    deploy.save(Model(NET.apply, VARIABLES, (IDS,)), path)
    return os.path.getsize(path)


@pytest.mark.parametrize("form", FORMS)
def test_packed_weights(form, whole, tmp_path):
    change, smaller = FORMS[form]
    packed = jax.tree.map(lambda leaf: change(leaf) if leaf.ndim > 1 else leaf, VARIABLES)
    deploy.save(Model(NET.apply, packed, (IDS,)), tmp_path / "m.onnx")
    ids = jax.random.randint(jax.random.key(2), (3, 9), 0, 50)
    [got] = session(tmp_path / "m.onnx").run(None, {"input_0": np.asarray(ids)})
    np.testing.assert_allclose(got, NET.apply(unpack(packed), ids), rtol=1e-4, atol=1e-5)
    assert whole / os.path.getsize(tmp_path / "m.onnx") > smaller


def test_codes_of_four_bits_are_multiplied_as_they_are_and_activations_rounded_only_if_asked(tmp_path):
    weight = quantize(jax.random.normal(jax.random.key(0), (64, 48)), Uniform(4, group_size=32, group_axis=0))
    model = Model(lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"].T, {"w": weight}, (jnp.ones((1, 64)),))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    wanted, errors = model(x), {}
    for activations in ("float32", "int8"):
        deploy.save(model, tmp_path / "m.onnx", activations=activations)
        kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
        assert kinds.count("MatMulNBits") == 1  # the other's groups are not along what is summed
        [got] = session(tmp_path / "m.onnx").run(None, {"input_0": np.asarray(x)})
        errors[activations] = float(np.abs(got - wanted).max())
    assert errors["float32"] < 1e-4 < errors["int8"] < 1


@pytest.mark.parametrize("bits", [4, 8])
def test_a_runner_rounds_activations_only_if_asked(bits):
    random = np.random.default_rng(bits)
    codes = random.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (128, 64)).astype(np.int8)
    scale = random.uniform(0.01, 0.02, 64).astype(np.float32)
    kept = onnx.helper.make_tensor(
        "q", {4: 22, 8: 3}[bits], codes.shape, codes.tobytes() if bits == 8 else _nibbles(codes), raw=True
    )
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ("n", size)) for name, size in (("x", 128), ("y", 64)))
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [kept, onnx.numpy_helper.from_array(scale, "s")])
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    rows = random.normal(size=(5, 128)).astype(np.float32)
    wanted = rows @ (codes.astype(np.float32) * scale)
    errors = [np.abs(deploy.runner(file, **how)(rows)[0] - wanted).max() for how in ({}, {"activations": "int8"})]
    assert errors[0] < 1e-4 * np.abs(wanted).max() < errors[1]
    with pytest.raises(ValueError, match="activations must be"):
        deploy.runner(file, activations="int4")


def _nibbles(codes):
    flat = codes.astype(np.int8).view(np.uint8).reshape(-1) & 15
    return (flat[::2] | flat[1::2] << 4).tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_said_of_activations_is_in_the_files_themselves(bits, tmp_path):
    weight = quantize(jax.random.normal(jax.random.key(bits), (64, 48)), Uniform(bits, group_size=32, group_axis=0))
    model = Model(lambda v, x: jnp.tanh(x @ v["w"]), {"w": weight}, (jnp.ones((1, 64)),))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    deploy.save(model, tmp_path / "m.onnx")
    deploy.place(model, [x]).save(tmp_path / "placed.onnx")
    for name in ("m.onnx", "placed.onnx"):
        both = [deploy.runner(tmp_path / name, activations=kind)(x)[0] for kind in ("float32", "int8")]
        np.testing.assert_array_equal(*both)
    np.testing.assert_allclose(deploy.runner(tmp_path / "m.onnx")(x)[0], model(x), atol=1e-5)


def test_packed_layers_of_a_scan_and_other_factors(tmp_path):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(6)(x)), None

    net = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=10)()
    x = jax.random.normal(jax.random.key(0), (2, 6))
    variables = net.init(jax.random.key(1), x, None)
    packed = jax.tree.map(lambda leaf: quantize(leaf, Uniform(8, channel_axis=(0, 2))) if leaf.ndim == 3 else leaf, variables)
    deploy.save(Model(lambda v, x: net.apply(v, x, None)[0], packed, (x,)), tmp_path / "m.onnx")
    [got] = session(tmp_path / "m.onnx").run(None, {"input_0": np.asarray(x)})
    np.testing.assert_allclose(got, net.apply(unpack(packed), x, None)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["Tucker", "CP"])
def test_factors_of_kernels_run_one_after_the_other(method, tmp_path):
    random = np.random.default_rng(0)

    def part(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    if method == "Tucker":
        leaf = Tucker(part(6, 2), part(3, 3, 2, 4), part(4, 8), (3, 3, 6, 8))
    else:
        leaf = CP((part(3, 2), part(3, 2), part(6, 2), part(8, 2)), (3, 3, 6, 8))
    model = Model(
        lambda v, x: jax.lax.conv_general_dilated(x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        {"k": leaf},
        (jnp.ones((1, 5, 5, 6)),),
    )
    deploy.save(model, tmp_path / "m.onnx")
    x = part(2, 5, 5, 6)
    [got] = session(tmp_path / "m.onnx").run(None, {"input_0": np.asarray(x)})
    np.testing.assert_allclose(got, model(x), rtol=1e-3, atol=1e-3)
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("Conv") + kinds.count("MatMul") >= 2
