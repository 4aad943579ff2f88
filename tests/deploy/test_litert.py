"""LiteRT files and OpenVINO: against jax, and against the simulation; run where these engines are installed."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from onnx_cases import ALONG, CONVOLUTIONS, LOOKUPS, MOVES, PRODUCTS

from lepton_jax import Model, deploy, factorize_model, quantize_model
from lepton_jax.command_line import main
from lepton_jax.core.errors import ArtifactError
from lepton_jax.deploy.to_litert.points import Point
from lepton_jax.models import ResNetCifar, Transformer

HAS_LITERT = all(importlib.util.find_spec(name) for name in ("litert_converter", "ai_edge_litert"))
litert = pytest.mark.skipif(not HAS_LITERT, reason="needs LiteRT and its converter")
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
WITHOUT = {
    *("conv_transposed_grouped", "conv_transposed_strided", "integers", "bfloat16", "sort", "sort_descending", "argsort"),
    *("argsort_of_equals", "lexsort", "median", "quantile", "searchsorted", "at_add", "at_computed", "at_max", "at_multiply"),
    *("bincount", "segment_sum", "take_along_first"),
}
"""What LiteRT has no form of: each must be refused in one line."""


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3), name="a/b")(x)), (2, 2), (2, 2))
        x = nn.relu6(nn.Conv(16, (3, 3), strides=(2, 2))(x)).reshape(x.shape[0], -1)
        return nn.DenseGeneral((3, 4))(nn.gelu(nn.Dense(12)(x)))


def cnn(seed):
    x = jax.random.normal(jax.random.key(seed), (2, 12, 12, 1))
    net = Net()
    return Model.from_linen(net, net.init(jax.random.key(seed + 1), x), x), x


def rms(got, wanted):
    return float(np.sqrt(np.mean((np.asarray(got) - np.asarray(wanted)) ** 2)) / np.abs(np.asarray(wanted)).max())


GROUPS = {"convolutions": CONVOLUTIONS, "products": PRODUCTS, "lookups": LOOKUPS, "moves": MOVES, "along": ALONG}


@litert
@pytest.mark.parametrize("group", GROUPS)
def test_small_functions_are_written_or_refused(group, tmp_path):
    with jax.numpy_rank_promotion("allow"):
        for name, (function, x) in GROUPS[group].items():
            path, model = tmp_path / f"{name}.tflite", Model(lambda v, x, function=function: function(x), {}, (x,))
            if name in WITHOUT:
                with pytest.raises(ValueError, match="LiteRT does not take this model"):
                    deploy.save(model, path)
                assert not path.exists(), name
                continue
            deploy.save(model, path)
            wanted = [np.asarray(leaf) for leaf in jax.tree.leaves(model(x))]
            for got, one in zip(deploy.runner(path)(x), wanted, strict=True):
                assert (got.shape, got.dtype) == (one.shape, one.dtype), name
                np.testing.assert_allclose(got, one, rtol=2e-5, atol=2e-5, err_msg=name)


@litert
@pytest.mark.parametrize("seed", [0, 1])
def test_a_net_as_it_is_in_codes_and_in_factors(seed, tmp_path):
    model, x = cnn(seed)
    sizes = {}
    for name, one in {
        "float": model,
        "int8": quantize_model(model, 8),
        "int4": quantize_model(model, 4),
        "thin": factorize_model(model, 3),
    }.items():
        deploy.save(one, tmp_path / "m.tflite")
        [got] = deploy.runner(tmp_path / "m.tflite")(x)
        np.testing.assert_allclose(got, np.asarray(one(x)), rtol=2e-5, atol=2e-5)
        sizes[name] = (tmp_path / "m.tflite").stat().st_size
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.variables) if leaf.ndim > 1)
    assert sizes["float"] - sizes["int8"] > 2.5 * weights  # three bytes of four, less what scales take
    assert deploy.verify(tmp_path / "m.tflite", factorize_model(model, 3), x).agreement == 1


@litert
def test_scanned_odd_and_other_frameworks_models(tmp_path):
    decoder = Transformer(vocabulary=11, width=8, heads=2, depth=2, mlp=16, max_length=6, scan=True)
    ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    scanned = Model.from_linen(decoder, decoder.init(jax.random.key(1), ids), ids)

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.unread = nnx.Linear(5, 1, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x):
            return {"one": self.first(x), "in": x}

    x = jax.random.normal(jax.random.key(2), (3, 5))
    plain = Model(
        lambda v, a: jnp.where(a["x"] > 0, a["x"] @ v["odd name/0"].T, jnp.nan) + v["size1"],
        {"odd name/0": jax.random.normal(jax.random.key(3), (5, 5)), "size1": jnp.ones((1, 1)), "unread": jnp.ones(3)},
        ({"x": x, "unused": ids},),
    )
    for model, given in ((scanned, ids), (Model.from_nnx(Two(nnx.Rngs(0)), x), x), (plain, {"x": x, "unused": ids})):
        deploy.save(model, tmp_path / "m.tflite")
        outs = deploy.runner(tmp_path / "m.tflite")(given)
        for got, wanted in zip(outs, jax.tree.leaves(model(given)), strict=True):
            np.testing.assert_allclose(got, np.asarray(wanted), rtol=2e-5, atol=2e-5)


@litert
@pytest.mark.parametrize("seed", [0, 1])
def test_int8_is_the_simulation(seed, tmp_path):
    model, x = cnn(seed)
    placed = deploy.place(model, [jax.random.normal(jax.random.key(9), (16, 12, 12, 1))], target="litert")
    placed.save(tmp_path / "m.tflite")
    found = deploy.verify(tmp_path / "m.tflite", placed, x)
    assert found.largest <= 1e-6 * found.scale
    assert found.agreement == 1
    assert rms(placed.simulate(x), model(x)) < 0.03
    deploy.save(model, tmp_path / "f.tflite")
    assert (tmp_path / "m.tflite").stat().st_size < (tmp_path / "f.tflite").stat().st_size - 1000


@litert
def test_residual_additions_are_within_a_code(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    net = ResNetCifar(depth=8, shortcut="pad")
    model = Model.from_linen(net, net.init(jax.random.key(1), x), x[:1])
    placed = model.deploy(tmp_path / "m.tflite", target="litert", batches=[x])
    run = deploy.runner(tmp_path / "m.tflite")
    got = np.concatenate([run(x[i : i + 1])[0] for i in range(4)])
    assert rms(got, placed.simulate(x)) < 5e-3


@litert
def test_named_axes_take_any_length(tmp_path):
    model, _ = cnn(3)
    deploy.save(model, tmp_path / "m.tflite", axes={0: "batch"})
    run = deploy.runner(tmp_path / "m.tflite")
    for batch in (1, 5, 2):
        x = jax.random.normal(jax.random.key(batch), (batch, 12, 12, 1))
        np.testing.assert_allclose(run(x)[0], np.asarray(model(x)), rtol=2e-5, atol=2e-5)


@litert
def test_errors_are_one_line_and_leave_what_was_there(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"^deploy\.save: LiteRT does not take this model, which are of operations .*while"):
        deploy.save(Model(lambda v, x: jax.lax.fori_loop(0, 3, lambda i, a: jnp.sin(a), x), {}, (jnp.ones(3),)), file)
    assert file.read_bytes() == b"before"
    with pytest.raises(ArtifactError, match="LiteRT does not take"):
        deploy.runner(file)
    model, x = cnn(0)
    with pytest.raises(ValueError, match=r"must end in \.tflite for litert"):
        deploy.place(model, [x], target="litert").save(tmp_path / "m.onnx")
    deploy.save(model, file)
    with pytest.raises(ValueError, match="takes 1 inputs; got 2"):
        deploy.runner(file)(x, x)


@litert
def test_the_command_writes_a_folder_and_measures(tmp_path, capfd):
    model, _ = cnn(4)
    model.save(tmp_path / "m.lepton")
    np.save(tmp_path / "x.npy", np.asarray(jax.random.normal(jax.random.key(5), (8, 12, 12, 1))))
    folder = tmp_path / "m.deploy"
    assert main(["deploy", str(tmp_path / "m.lepton"), "--to", "litert", "--calibrate", str(tmp_path / "x.npy")]) == 0
    assert {file.name for file in folder.iterdir()} == {"model.tflite", "float.tflite", "input_0.bin", "run_litert.py"}
    said = subprocess.run([sys.executable, "run_litert.py"], cwd=folder, capture_output=True, text=True, check=True).stdout
    given = np.fromfile(folder / "input_0.bin", np.float32).reshape(1, 12, 12, 1)
    [wanted] = deploy.runner(folder / "model.tflite")(given)
    np.testing.assert_allclose([float(word) for word in said.split()], wanted.reshape(-1), rtol=1e-6)
    capfd.readouterr()
    assert main(["bench", str(folder / "float.tflite"), str(folder / "model.tflite"), "--rounds", "3"]) == 0
    assert "model.tflite" in capfd.readouterr().out


@openvino
@pytest.mark.parametrize("seed", [0, 1])
def test_openvino_gives_the_simulation_of_plain_nets(seed, tmp_path, capfd):
    model, x = cnn(seed)
    placed = deploy.place(model, [jax.random.normal(jax.random.key(9), (16, 12, 12, 1))], target="openvino")
    placed.save(tmp_path / "m.onnx")
    found = deploy.verify(tmp_path / "m.onnx", placed, x)
    assert found.largest <= 1e-6 * found.scale
    deploy.save(model, tmp_path / "f.onnx")
    [got] = deploy.runner(tmp_path / "f.onnx", engine="openvino")(x)
    np.testing.assert_allclose(got, np.asarray(model(x)), rtol=2e-5, atol=2e-5)
    assert main(["bench", str(tmp_path / "f.onnx"), str(tmp_path / "m.onnx"), "--engine", "openvino", "--rounds", "3"]) == 0
    assert "m.onnx" in capfd.readouterr().out
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="OpenVINO does not take"):
        deploy.runner(tmp_path / "bad.onnx", engine="openvino")


def test_types_of_rounded_values():
    assert Point(np.float32(0.5), -3).type_of("2x?x") == "tensor<2x?x!quant.uniform<i8:f32, 5.000000000e-01:-3>>"
    scales = np.array([1, 2], np.float32)
    wanted = "tensor<2x3x!quant.uniform<i8<-127:127>:f32:0, {1.000000000e+00, 2.000000000e+00}>>"
    assert Point(scales, 0, 0, -127).type_of("2x3x") == wanted


def test_engines_that_are_not_there_say_how_to_get_them(tmp_path, monkeypatch):
    for name in ("litert_converter", "ai_edge_litert", "ai_edge_litert.interpreter", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    model, _ = cnn(0)
    with pytest.raises(ImportError, match=r"pip install --no-deps litert-converter"):
        deploy.save(model, tmp_path / "m.tflite")
    with pytest.raises(ImportError, match=r"pip install 'lepton-jax\[litert\]'"):
        deploy.runner(tmp_path / "m.tflite")
    with pytest.raises(ImportError, match=r"pip install 'lepton-jax\[openvino\]'"):
        deploy.runner(tmp_path / "m.onnx", engine="openvino")
    assert list(tmp_path.iterdir()) == []
