"""The first convolution over blocks of pixels: the same bits, from files that are whole."""

import jax
import numpy as np
import onnx
import pytest
from flax import linen as nn

from lepton_jax import Model, deploy


class Net(nn.Module):
    features: int = 8
    kernel: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: str | tuple = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, self.kernel, self.strides, self.padding, use_bias=self.use_bias)(x)
        return nn.Dense(5)(nn.max_pool(nn.relu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1))


def placed_net(net, shape, seed=0):
    x = np.random.default_rng(seed).normal(size=(6, *shape)).astype(np.float32)
    variables = net.init(jax.random.key(seed), x[:1])
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables)
    return deploy.place(Model(net.apply, variables, (x[:1],)), [x]), x


def first_weight(file):
    graph = onnx.load(file).graph
    onnx.checker.check_model(onnx.load(file), full_check=True)
    conv = next(node for node in graph.node if node.op_type == "Conv")
    opened = next(node for node in graph.node if node.output[0] == conv.input[1])
    return next(list(one.dims) for one in graph.initializer if one.name == opened.input[0])


@pytest.mark.parametrize(
    ("net", "shape", "dims"),
    [
        (Net(), (9, 12, 1), [32, 4, 3, 3]),
        (Net(use_bias=False), (8, 8, 3), [32, 12, 3, 3]),
        (Net(features=5, kernel=(1, 5)), (6, 16, 2), [20, 8, 1, 3]),
        (Net(kernel=(4, 7), padding=((0, 0), (1, 5))), (9, 12, 1), [32, 4, 4, 4]),
        (Net(kernel=(1, 1)), (8, 8, 3), [32, 12, 1, 1]),
    ],
)
def test_blocks_give_the_same_bits(net, shape, dims, tmp_path):
    placed, x = placed_net(net, shape)
    placed.save(tmp_path / "m.onnx")
    assert first_weight(tmp_path / "m.onnx") == dims
    more = np.random.default_rng(7).normal(size=(3, *shape)).astype(np.float32) * 2
    for inputs in (x, more):
        assert deploy.verify(tmp_path / "m.onnx", placed, inputs).equal
    placed.save(tmp_path / "codes.onnx", codes=True)
    outs = deploy.runner(tmp_path / "codes.onnx")(x)[-len(placed.sites) :]
    wanted = placed.codes(x)
    for name, codes in zip(placed.sites, outs, strict=True):
        np.testing.assert_array_equal(codes, wanted[name])


@pytest.mark.parametrize(
    ("net", "shape", "channels"),
    [
        (Net(strides=2), (8, 8, 3), 3),
        (Net(), (8, 10, 3), 3),
        (Net(), (8, 8, 4), 4),
        (Net(features=40), (8, 8, 3), 3),
        (Net(padding="VALID"), (8, 8, 1), 1),
    ],
)
def test_other_convolutions_stay_as_they_are(net, shape, channels, tmp_path):
    placed, x = placed_net(net, shape)
    placed.save(tmp_path / "m.onnx")
    assert first_weight(tmp_path / "m.onnx")[1] == channels
    assert deploy.verify(tmp_path / "m.onnx", placed, x).equal


def test_files_for_another_engine_are_as_they_were(tmp_path):
    placed, x = placed_net(Net(), (8, 8, 1))
    other = deploy.place(Model(placed.model.apply, placed.variables, (x[:1],)), [x], target="openvino")
    other.save(tmp_path / "m.onnx")
    assert first_weight(tmp_path / "m.onnx") == [8, 1, 3, 3]
