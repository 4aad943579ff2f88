"""ONNX files against jax: every operation alone, whole models, axes of any length, and what cannot be written."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from jax import lax
from onnx_cases import ACTIVATIONS, ALONG, ARITHMETIC, CONVOLUTIONS, LOOKUPS, LOOPS, MOVES, PRODUCTS

from lepton_jax import Model, deploy
from lepton_jax.artifact.program import FixedBatchWarning
from lepton_jax.models import ResNetCifar, Transformer

jax.config.update("jax_numpy_rank_promotion", "raise")


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, *inputs):
    return session(path).run(None, {f"input_{i}": np.asarray(x) for i, x in enumerate(inputs)})


def kinds(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def close(got, wanted, **how):
    return got.shape == wanted.shape and got.dtype == wanted.dtype and np.allclose(got, wanted, equal_nan=True, **how)


GROUPS = {
    "convolutions": CONVOLUTIONS,
    "activations": ACTIVATIONS,
    "products": PRODUCTS,
    "lookups": LOOKUPS,
    "moves": MOVES,
    "along": ALONG,
    "loops": LOOPS,
    "arithmetic": ARITHMETIC,
}


@pytest.mark.parametrize("group", GROUPS)
def test_small_functions(group, tmp_path):
    cases = GROUPS[group]
    jax.config.update("jax_numpy_rank_promotion", "allow")

    def apply(v, *inputs):
        return [function(x) for (function, _), x in zip(cases.values(), inputs)]

    inputs = [x for _, x in cases.values()]
    wanted = jax.jit(apply)({}, *inputs)
    deploy.save(Model(apply, {}, tuple(inputs)), tmp_path / "m.onnx", axes={})
    # Inputs that nothing reads stay inputs; those of the file are all.
    got = iter(run(tmp_path / "m.onnx", *inputs))
    wrong = []
    for name, outs in zip(cases, wanted):
        how = {"rtol": 1e-4, "atol": 2e-3 if name == "halves" else 1e-5}
        if not all(close(next(got), np.asarray(out), **how) for out in jax.tree.leaves(outs)):
            wrong.append(name)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert not wrong
    assert not list(got)


SYMBOLIC = {
    "conv": CONVOLUTIONS["conv_stride_same"],
    "pool": CONVOLUTIONS["sum_over_channels"],
    "softmax": ACTIVATIONS["softmax"],
    "attention": ACTIVATIONS["sdpa"],
    "einsum": PRODUCTS["einsum"],
    "take": LOOKUPS["take_outside"],
    "index": LOOKUPS["index_of_both"],
    "along": LOOKUPS["take_along"],
    "at_add": LOOKUPS["at_add"],
    "sort": ALONG["sort_descending"],
    "cumprod": ALONG["cumprod"],
    "broadcast": MOVES["broadcast_returned"],
    "resize": (lambda x: jax.image.resize(x, (x.shape[0], 16, 16, 6), "bilinear"), MOVES["roll"][1]),
    "flatten": (lambda x: x.reshape(x.shape[0], -1) @ jnp.ones((384, 3)), MOVES["roll"][1]),
    "mean": (lambda x: x - x.mean(0, keepdims=True), MOVES["roll"][1]),
    "count": (lambda x: x[:, 0, 0, 0] + jnp.arange(x.shape[0]) / x.shape[0], MOVES["roll"][1]),
    "zeros": (lambda x: jnp.zeros((x.shape[0], 3)), MOVES["roll"][1]),
    "twice": (lambda x: jnp.concatenate([x, x], 0).reshape(2, x.shape[0], -1), MOVES["roll"][1]),
    "scan": (lambda x: lax.scan(lambda c, a: (c + a, c * a), x[:, 0, 0], x.swapaxes(0, 1)[:, :, 1])[1], MOVES["roll"][1]),
}


def test_a_batch_of_any_length(tmp_path):
    wrong = []
    jax.config.update("jax_numpy_rank_promotion", "allow")
    for name, (function, x) in SYMBOLIC.items():
        deploy.save(Model(lambda v, x, function=function: function(x), {}, (x,)), tmp_path / "m.onnx")
        longer = jnp.concatenate([x, x[::-1], x[:1]])
        outs = jax.tree.leaves(jax.jit(function)(longer))
        if not all(close(*pair, rtol=1e-4, atol=1e-5) for pair in zip(run(tmp_path / "m.onnx", longer), map(np.asarray, outs))):
            wrong.append(name)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert not wrong


def test_axes_with_names(tmp_path):
    net = Transformer(vocabulary=31, depth=2, width=32, heads=4, mlp=48, max_length=24)
    ids = jax.random.randint(jax.random.key(0), (2, 11), 0, 31)
    variables = net.init(jax.random.key(1), ids)
    model = Model(net.apply, variables, (ids,))
    deploy.save(model, tmp_path / "m.onnx", axes={0: "batch", 1: "time"}, constraints=("time <= 24",))
    for shape in ((1, 1), (3, 24), (2, 7)):
        ids = jax.random.randint(jax.random.key(2), shape, 0, 31)
        np.testing.assert_allclose(run(tmp_path / "m.onnx", ids)[0], model(ids), rtol=1e-4, atol=1e-5)
    names = [dim.dim_param for dim in onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "time"]
    found = kinds(tmp_path / "m.onnx")
    assert (found.count("LayerNormalization"), found.count("Softmax"), found.count("Gelu")) == (5, 2, 2)


def normed(x, scale, bias, epsilon=1e-5, power=2):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((jnp.abs(centred) ** power).mean(-1, keepdims=True) + epsilon) * scale[None] + bias[None]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: normed(x, jnp.arange(1.0, 7), jnp.ones(6)), "LayerNormalization"),
        (lambda x: normed(x, jnp.arange(1.0, 7), jnp.ones(6), power=1), None),
        (lambda x: normed(x, jnp.arange(1.0, 7), jnp.ones(6), epsilon=0.05), "LayerNormalization"),
        (lambda x: jax.nn.softmax(x, 0), "Softmax"),
        (lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True)), None),
        (lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), "Softmax"),
        (lambda x: 0.5 * x * (1 + lax.erf(x / 2**0.5)), "Gelu"),
        (lambda x: 0.5 * x * (1 + lax.erf(x / 2**0.4)), None),
    ],
)
def test_several_operations_become_one_only_if_their_numbers_are_equal(function, kind, tmp_path):
    x = jax.random.normal(jax.random.key(3), (4, 6)) * 3
    deploy.save(Model(lambda v, x: function(x), {}, (x,)), tmp_path / "m.onnx")
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x)[0], function(x), rtol=2e-5, atol=2e-6)
    found = set(kinds(tmp_path / "m.onnx")) & {"LayerNormalization", "Softmax", "Gelu"}
    assert found == ({kind} if kind else set())


def test_batch_norms_are_folded_and_no_transpose_parts_a_convolution_from_its_bias(tmp_path):
    net = ResNetCifar(depth=8, features=4)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = net.init(jax.random.key(1), x)
    noisy = jax.tree.map(lambda leaf: leaf + jax.random.uniform(jax.random.key(2), leaf.shape), variables)
    deploy.save(Model(net.apply, noisy, (x,)), tmp_path / "m.onnx")
    wanted = net.apply(noisy, x)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x)[0], wanted, rtol=1e-3, atol=1e-3 * float(jnp.abs(wanted).max()))
    found = kinds(tmp_path / "m.onnx")
    assert found.count("Transpose") == 1  # of the input
    assert not {"Sub", "Sqrt"} & set(found)
    assert found.count("Mul") == 1  # of the mean


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(16, 12)(ids)
        x = nn.RNN(nn.OptimizedLSTMCell(12))(x)
        return nn.RNN(nn.GRUCell(8), reverse=True)(x)


def test_recurrent_nets(tmp_path):
    ids = jax.random.randint(jax.random.key(0), (2, 13), 0, 16)
    model = Model.from_linen(Recurrent(), Recurrent().init(jax.random.key(1), ids), ids)
    deploy.save(model, tmp_path / "m.onnx")
    ids = jax.random.randint(jax.random.key(0), (5, 13), 0, 16)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", ids)[0], model(ids), rtol=1e-4, atol=1e-6)
    assert kinds(tmp_path / "m.onnx").count("Scan") == 2


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x)))), x.sum()


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=12)
        return layers()(x, None)


def test_scanned_layers_and_trees_of_inputs_and_outputs(tmp_path):
    x = jax.random.normal(jax.random.key(0), (3, 6))
    net = Scanned()
    variables = net.init(jax.random.key(1), x)

    def apply(v, pair, *, twice=2.0):
        x, (sums,) = net.apply(v, pair["a"]), pair["b"]
        return {"z": x[0] * twice, "a": (x[1], sums + 1)}

    inputs = {"b": [jnp.arange(4)], "a": x}
    deploy.save(Model(apply, variables, (inputs,)), tmp_path / "m.onnx")
    got = run(tmp_path / "m.onnx", *jax.tree.leaves(inputs))
    for one, other in zip(got, jax.tree.leaves(apply(variables, inputs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert kinds(tmp_path / "m.onnx").count("LayerNormalization") == 12


def test_all_operations_without_a_form_are_named_in_one_error(tmp_path):
    def apply(v, x):
        with jax.named_scope("block/spectrum"):
            y = jnp.abs(jnp.fft.fft(x))
        with jax.named_scope("head"):
            return y + lax.lgamma(x)

    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"fft at block/spectrum.*lgamma at head"):
        deploy.save(Model(apply, {}, (jnp.ones((2, 4)),)), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_bad_calls_are_refused_in_one_line(tmp_path):
    model = Model(lambda v, x: x, {}, (jnp.ones(2),))
    with pytest.raises(ValueError, match=r"must end in \.onnx or \.tflite; got 'm\.pb'"):
        deploy.save(model, "m.pb")
    with pytest.raises(TypeError, match="model must be a Model"):
        deploy.save({"w": 1}, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="needs example inputs"):
        deploy.save(Model(lambda v, x: x, {}), tmp_path / "m.onnx")


def test_a_missing_engine_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"^onnx is not installed; it is in an extra: pip install 'lepton-jax\[deploy\]'\.$"):
        deploy.save(Model(lambda v, x: x, {}, (jnp.ones(2),)), tmp_path / "m.onnx")


def test_a_model_for_one_batch_size_says_so(tmp_path):
    with pytest.warns(FixedBatchWarning, match="examples' shapes only"):
        deploy.save(Model(lambda v, x: x.reshape(2, -1), {}, (jnp.ones((4, 3)),)), tmp_path / "m.onnx")
    assert run(tmp_path / "m.onnx", np.ones((4, 3), np.float32))[0].shape == (2, 6)
