"""Models in eight bits: what is simulated in jax is what ONNX Runtime gives, bit for bit; and what it fuses."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from flax import nnx

import lepton_jax as lepton
from lepton_jax import Model, deploy
from lepton_jax.deploy.simulate import added
from lepton_jax.deploy.sites import Grid
from lepton_jax.deploy.weights import in_codes
from lepton_jax.formats import Uniform
from lepton_jax.formats.ranges import Percentile
from lepton_jax.graph.trace import trace
from lepton_jax.leaves import LowRank
from lepton_jax.models import ResNetCifar, Transformer
from lepton_jax.quantization import quantize


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(33)(x))
        x = nn.tanh(nn.Dense(17, use_bias=False)(x))  # a float operation between
        return nn.Dense(5)(x)


class Wide(nn.Module):
    """Sums of more products than float32 holds exactly."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(3000, kernel_init=nn.initializers.constant(0.01))(x)))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x)), (2, 2), (2, 2))
        return nn.Dense(7)(nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1))))


class Inverted(nn.Module):
    """Depthwise convolutions, rectifiers with an upper bound, batch norms, a value read twice."""

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu6(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), strides=2)(x)))
        for _ in range(2):
            y = jax.nn.relu6(4 + nn.Conv(12, (1, 1))(x))
            y = jnp.clip(nn.Conv(12, (3, 3), feature_group_count=12)(y), 0, 3)
            x = x + nn.Conv(8, (1, 1))(y)
        return nn.Dense(3)(jax.nn.hard_swish(x).mean((1, 2))) + x.sum((1, 2))[:, :3]


class OneAxis(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(6, (5,), strides=2)(x))
        return nn.DenseGeneral((2, 3), axis=(-2, -1))(x)


def images(seed, count, size=16, channels=3):
    return np.random.default_rng(seed).normal(size=(count, size, size, channels)).astype(np.float32)


def rows(seed, count, width=20):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


NETS = {
    "dense": (Dense(), lambda seed, n: rows(seed, n)),
    "wide": (Wide(), lambda seed, n: np.abs(rows(seed, n))),
    "convolutional": (Convolutional(), images),
    "inverted": (Inverted(), images),
    "one axis": (OneAxis(), lambda seed, n: rows(seed, n, 44).reshape(n, 11, 4)),
    "residual": (ResNetCifar(depth=8, features=4), images),
}


def made(name):
    net, inputs = NETS[name]
    variables = net.init(jax.random.key(0), inputs(0, 1))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    # Biases, scales and statistics as training leaves them, not as they begin.
    noisy = jax.tree.map(
        lambda leaf: leaf * (0.7 + 0.6 * jax.random.uniform(next(keys), leaf.shape)) + 0.1 * (leaf.ndim == 1), variables
    )
    return Model(net.apply, noisy, (inputs(0, 1),)), inputs


def run(path, *inputs, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"input_{i}": np.asarray(x) for i, x in enumerate(inputs)})


def kinds(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("name", NETS)
def test_simulated_equals_deployed_to_the_bit(name, tmp_path):
    model, inputs = made(name)
    placed = deploy.place(model, [inputs(1, 8), inputs(2, 8)])
    placed.save(tmp_path / "m.onnx")
    x = inputs(3, 29) * 1.3  # some beyond the ranges
    [got] = run(tmp_path / "m.onnx", x, optimized=tmp_path / "fused.onnx")
    wanted = placed.simulate(x)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(got, wanted)
    near = np.abs(got - model(x)).max() / np.abs(model(x)).max()
    assert 0 < near < 0.25
    fused = kinds(tmp_path / "fused.onnx")
    convolutions = [kind for kind in fused if kind.endswith(("Conv", "Gemm", "MatMul"))]
    assert convolutions
    assert all(kind.startswith("Q") for kind in convolutions)
    verified = deploy.verify(tmp_path / "m.onnx", placed, x)
    assert verified.equal
    assert str(verified) == "outputs are equal, bit for bit"


def test_additions_of_codes_are_those_of_the_engine():
    random = np.random.default_rng(0)
    a, b = (grid.reshape(-1) for grid in np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2, indexing="ij"))
    for trial in range(6):
        scales = [np.float32(10 ** random.uniform(-2.5, -1)) for _ in range(3)]
        zeros = [int(random.integers(0, 256)) for _ in range(3)]
        if trial % 2:
            zeros[2], scales[2] = 0, np.float32((scales[0] + scales[1]) * random.uniform(0.5, 1))
        constants = [
            onnx.helper.make_tensor(f"{kind}{i}", number, [], [value])
            for i in range(3)
            for kind, number, value in (("s", 1, scales[i]), ("z", 2, zeros[i]))
        ]
        order = ["a", "s0", "z0", "b", "s1", "z1", "s2", "z2"]
        node = onnx.helper.make_node("QLinearAdd", order, ["c"], domain="com.microsoft")
        values = [onnx.helper.make_tensor_value_info(name, 2, [65536]) for name in "abc"]
        graph = onnx.helper.make_graph([node], "add", values[:2], values[2:], constants)
        opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
        data = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        [got] = onnxruntime.InferenceSession(data).run(None, {"a": a, "b": b})
        table = added(*(Grid(scale, zero) for scale, zero in zip(scales, zeros)))
        assert np.array_equal(got.reshape(256, 256), table)


def test_random_keys_among_the_variables_and_a_recurrent_net(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (4, 4), (4, 4))
            return self.head(self.drop(x.reshape(x.shape[0], -1)))

    net, x = Net(nnx.Rngs(0)), images(0, 5)
    net.eval()
    placed = deploy.place(Model.from_nnx(net, x[:1]), [x])
    placed.save(tmp_path / "m.onnx")
    assert np.array_equal(run(tmp_path / "m.onnx", x)[0], jax.jit(placed.simulate)(x))
    cell = nn.RNN(nn.OptimizedLSTMCell(8))
    x = rows(0, 12, 6).reshape(3, 4, 6)
    placed = deploy.place(Model(cell.apply, cell.init(jax.random.key(0), x)), [x])
    placed.save(tmp_path / "m.onnx")
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x)[0], placed.simulate(x), atol=0.02)


def test_a_residual_block_is_fused_whole(tmp_path):
    model, inputs = made("residual")
    placed = deploy.place(model, [inputs(1, 8)])
    placed.save(tmp_path / "m.onnx")
    run(tmp_path / "m.onnx", inputs(2, 2), optimized=tmp_path / "fused.onnx")
    fused = kinds(tmp_path / "fused.onnx")
    assert (fused.count("QLinearConv"), fused.count("QLinearAdd"), fused.count("QGemm")) == (7, 3, 1)
    assert "Relu" not in fused
    assert fused.count("Transpose") <= 2


def test_a_transformer_is_near_its_simulation(tmp_path):
    net = Transformer(vocabulary=23, depth=2, width=32, heads=4, mlp=64, max_length=16)
    ids = jax.random.randint(jax.random.key(0), (4, 16), 0, 23)
    model = Model(net.apply, net.init(jax.random.key(1), ids), (ids,))
    placed = deploy.place(model, [ids])
    placed.save(tmp_path / "m.onnx")
    [got] = run(tmp_path / "m.onnx", ids, optimized=tmp_path / "fused.onnx")
    exact = model(ids)
    assert np.abs(got - placed.simulate(ids)).max() < 0.05 * np.abs(exact).max()
    assert np.abs(got - exact).max() < 0.1 * np.abs(exact).max()
    assert kinds(tmp_path / "fused.onnx").count("MatMulIntegerToFloat") == 13
    verified = deploy.verify(tmp_path / "m.onnx", placed, ids)
    assert verified.largest == pytest.approx(np.abs(got - placed.simulate(ids)).max(), rel=1e-6)
    assert verified.equal or "first at Transformer" in str(verified)


def test_layers_of_a_scan_are_placed_one_by_one(tmp_path):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(12)(x)), None

    net = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)()
    x = rows(0, 6, 12)
    variables = net.init(jax.random.key(0), x, None)
    placed = deploy.place(Model(lambda v, x: net.apply(v, x, None)[0], variables), [x])
    placed.save(tmp_path / "m.onnx")
    assert np.array_equal(run(tmp_path / "m.onnx", x)[0], placed.simulate(x))
    assert len(placed.grids) == 5


def test_packed_weights_and_several_inputs(tmp_path):
    w, u = jax.random.normal(jax.random.key(0), (20, 16)), jax.random.normal(jax.random.key(1), (16, 3))
    packed = {
        "w": quantize(w, Uniform(8, channel_axis=1)),
        "thin": LowRank(quantize(u, Uniform(8, channel_axis=1)), jax.random.normal(jax.random.key(2), (3, 16)), (16, 16)),
    }
    model = Model(lambda v, x, y: (jnp.maximum(x @ v["w"] + y, 0) @ v["thin"], x.sum(1)), packed)
    batch = (jnp.asarray(rows(0, 9)), jnp.asarray(rows(1, 9, 16)))
    placed = deploy.place(model, [batch])
    placed.save(tmp_path / "m.onnx")
    got = run(tmp_path / "m.onnx", *batch)
    assert np.array_equal(got[0], placed.simulate(*batch)[0])
    dense = Model(model.apply, lepton.unpack(packed))(*batch)
    assert np.abs(got[0] - dense[0]).max() < 0.05 * np.abs(dense[0]).max()
    weights = [
        tensor for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if tensor.data_type == 3 and len(tensor.dims) == 2
    ]
    assert {tuple(tensor.dims) for tensor in weights} == {(20, 16), (16, 3), (3, 16)}
    # Codes that are of eight bits stay what they are.
    codes = onnx.numpy_helper.to_array(next(tensor for tensor in weights if tuple(tensor.dims) == (20, 16)))
    assert np.array_equal(codes, packed["w"].qvalue)


def test_zeros_stay_zeros_and_seven_bits_are_seven_bits(tmp_path):
    w = jnp.where(jax.random.uniform(jax.random.key(0), (20, 16)) < 0.5, 0.0, 1.0) * jax.random.normal(
        jax.random.key(1), (20, 16)
    )
    x = rows(0, 9)
    placed = deploy.place(Model(lambda v, x: x @ v, w), [x], reduce_range=True, calibration=Percentile(q=99.0))
    placed.save(tmp_path / "m.onnx")
    [codes] = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer if len(t.dims) == 2]
    assert np.array_equal(codes == 0, np.asarray(w) == 0) or (np.asarray(w)[codes == 0]).max() < 0.01 * float(jnp.abs(w).max())
    assert not codes[np.asarray(w) == 0].any()
    assert np.abs(codes).max() == 63
    everything = deploy.place(Model(lambda v, x: x @ v, w), [x])
    assert placed.grids["input_0"].scale < everything.grids["input_0"].scale
    assert np.array_equal(run(tmp_path / "m.onnx", x)[0], placed.simulate(x))


def test_five_lines_from_a_float_model_to_a_verified_file(tmp_path):
    model, inputs = made("dense")
    placed = model.deploy(tmp_path / "int8.onnx", batches=[inputs(1, 8)])
    assert deploy.verify(tmp_path / "int8.onnx", placed, inputs(2, 5)).equal
    assert model.deploy(tmp_path / "float.onnx") is None
    verified = deploy.verify(tmp_path / "float.onnx", model, inputs(2, 5))
    assert verified.largest < 1e-5 * max(verified.scale, 1)


def test_it_says_what_it_rounds(tmp_path):
    model, inputs = made("convolutional")
    placed = deploy.place(model, [inputs(1, 4)])
    text = str(placed)
    assert "input_0" in text
    assert "given by Convolutional/conv_general_dilated_1" in text
    assert "multiplied in Convolutional/dot_general; as Convolutional/div" in text
    assert text.count("\n") == len(placed.sites)


def test_bad_calls_are_refused_in_one_line(tmp_path):
    model, inputs = made("dense")
    with pytest.raises(ValueError, match=r"target must be one of 'onnxruntime', 'openvino', 'litert'; got 'tensorrt'"):
        deploy.place(model, [inputs(0, 2)], target="tensorrt")
    with pytest.raises(ValueError, match="at least one batch"):
        deploy.place(model, [])
    with pytest.raises(
        ValueError, match=r"batch 1 must be like the model's inputs \(float32\[any, 20\]\); got float32\[any, 7\]"
    ):
        deploy.place(model, [inputs(0, 2), rows(0, 2, 7)])
    with pytest.raises(ValueError, match=r"variables must be finite; these are not: .*kernel"):
        deploy.place(Model(model.apply, jax.tree.map(lambda leaf: leaf * jnp.nan, model.variables)), [inputs(0, 2)])
    with pytest.raises(ValueError, match="ranges must be finite"):
        deploy.place(model, [inputs(0, 2) * np.float32(np.inf)])
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        deploy.place(model, [inputs(0, 2)]).save(tmp_path / "m.tflite")


@pytest.mark.parametrize(("bits", "narrow"), [(2, False), (3, True), (4, False), (4, True), (5, False), (8, False), (8, True)])
def test_codes_of_few_bits_stay_what_they_are(bits, narrow):
    draw = np.random.default_rng(bits)
    apply = lambda v, x: x @ v["w"]  # noqa: E731
    leaf = quantize(jnp.asarray(draw.normal(size=(40, 6)), jnp.float32), Uniform(bits, narrow_range=narrow))
    traced = trace(apply, {"w": leaf.unpack()}, jnp.ones((1, 40)))
    [eqn] = traced.equations()
    found = in_codes(eqn, leaf.unpack())
    np.testing.assert_allclose(found.rounded(), np.asarray(leaf.unpack()), rtol=3e-7)
    top = np.abs(np.asarray(leaf.qvalue, np.int64)).max(0)
    assert (np.abs(found.codes.astype(np.int64)).max(0) <= top).all()  # the same steps, or longer ones that serve as well
    other = in_codes(eqn, draw.normal(size=(40, 6)).astype(np.float32))
    assert (np.abs(other.codes).max(0) == 127).all()
