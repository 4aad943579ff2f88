"""`.lepton` files deployed: their programs have a graph like any model, without the model's code."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_cases import ALONG, LOOKUPS, LOOPS

import lepton_jax as lepton
from lepton_jax import deploy
from lepton_jax.formats import Uniform
from lepton_jax.models import ResNetCifar, Transformer
from lepton_jax.quantization import quantize


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {f"input_{i}": np.asarray(x) for i, x in enumerate(inputs)})


def kinds(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("cases", [LOOKUPS, ALONG, LOOPS], ids=["lookups", "along", "loops"])
def test_operations_of_programs(cases, tmp_path):
    jax.config.update("jax_numpy_rank_promotion", "allow")
    inputs = [x for _, x in cases.values()]

    def apply(v, *inputs):
        return [function(x) for (function, _), x in zip(cases.values(), inputs)]

    wanted = jax.jit(apply)({}, *inputs)
    lepton.save(tmp_path / "m.lepton", apply, {}, *inputs, axes={})
    deploy.save(lepton.load(tmp_path / "m.lepton"), tmp_path / "m.onnx", axes={})
    jax.config.update("jax_numpy_rank_promotion", "raise")
    got = iter(run(tmp_path / "m.onnx", *inputs))
    for name, outs in zip(cases, wanted):
        for out in jax.tree.leaves(outs):
            one = next(got)
            assert one.dtype == out.dtype, name
            np.testing.assert_allclose(one, out, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_file_of_any_batch_and_time_is_fused_as_its_model_is(tmp_path):
    net = Transformer(vocabulary=19, depth=1, width=16, heads=2, mlp=32, max_length=12)
    ids = jax.random.randint(jax.random.key(0), (1, 8), 0, 19)
    packed = jax.tree.map(
        lambda leaf: quantize(leaf, Uniform(8, channel_axis="out")) if leaf.ndim == 2 else leaf,
        net.init(jax.random.key(1), ids),
    )
    named = {"axes": {0: "b", 1: "t"}, "constraints": ("t <= 12",)}
    lepton.save(tmp_path / "m.lepton", net.apply, packed, ids, **named)
    file = lepton.load(tmp_path / "m.lepton")
    deploy.save(file, tmp_path / "m.onnx", **named)
    found = kinds(tmp_path / "m.onnx")
    assert (found.count("LayerNormalization"), found.count("Softmax"), found.count("Gelu")) == (3, 1, 1)
    for shape in ((3, 12), (1, 5)):
        ids = jax.random.randint(jax.random.key(2), shape, 0, 19)
        np.testing.assert_allclose(run(tmp_path / "m.onnx", ids)[0], file(ids), rtol=1e-4, atol=1e-5)


def test_a_file_is_placed_and_simulated_to_the_bit(tmp_path):
    net = ResNetCifar(depth=8, features=4)
    x = jax.random.normal(jax.random.key(0), (6, 16, 16, 3))
    lepton.save(tmp_path / "m.lepton", net.apply, net.init(jax.random.key(1), x), x[:1])
    placed = deploy.place(lepton.load_model(tmp_path / "m.lepton"), [x])
    placed.save(tmp_path / "m.onnx")
    assert deploy.verify(tmp_path / "m.onnx", placed, x[:4]).equal
    assert np.array_equal(run(tmp_path / "m.onnx", x)[0], placed.simulate(x))


def test_what_a_program_calls_and_is_not_known_is_said(tmp_path):
    lepton.save(tmp_path / "m.lepton", lambda v, x: jnp.linalg.eigh(x)[0], {}, jnp.eye(3), axes={})
    with pytest.raises(ValueError, match=r"the program (calls|has)"):
        deploy.save(lepton.load(tmp_path / "m.lepton"), tmp_path / "m.onnx", axes={})
    assert not (tmp_path / "m.onnx").exists()
