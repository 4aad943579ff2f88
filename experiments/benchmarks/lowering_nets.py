"""Networks for `fast_lowering`: those that XLA on CPU is slow at, and those that it is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.benchmarks.pruning_step import MLP
from lepton_jax.models import LeNet5, ResNet, ResNetCifar, Transformer


class MobileNet(nn.Module):
    """Howard et al. 2017: depthwise and pointwise convolutions in turn."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        def settled(x: Any) -> Any:
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        x, width = settled(nn.Conv(32, (3, 3), 2, padding=1, use_bias=False)(x)), 32
        for features, stride in (
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            *[(512, 1)] * 5,
            (1024, 2),
            (1024, 1),
        ):
            depthwise = nn.Conv(width, (3, 3), stride, padding=1, use_bias=False, feature_group_count=width)
            x, width = settled(nn.Conv(features, (1, 1), use_bias=False)(settled(depthwise(x)))), features
        return nn.Dense(1000)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """Liu et al. 2022: depthwise convolutions of 7x7 and dense layers."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for stage, (width, blocks) in enumerate(zip((48, 96, 192, 384), (2, 2, 6, 2))):
            x = nn.Conv(width, (2, 2), 2)(nn.LayerNorm()(x)) if stage else nn.LayerNorm()(nn.Conv(width, (4, 4), 4)(x))
            for _ in range(blocks):
                y = nn.LayerNorm()(nn.Conv(width, (7, 7), padding=3, feature_group_count=width)(x))
                x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))
        return nn.Dense(1000)(nn.LayerNorm()(x.mean((1, 2))))


class Audio(nn.Module):
    """Convolutions along time, some of them depthwise."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (64, 128, 256, 256):
            x = nn.relu(nn.Conv(width, (9,), 4)(x))
            x = x + nn.relu(nn.Conv(width, (3,), feature_group_count=width)(x))
        return nn.Dense(10)(x.mean(1))


class ThreeConvolutions(nn.Module):
    """The papers' small network: three convolutions with pools, and two dense layers."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (32, 64, 64):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18, 64 px, batch 32": (ResNet, (32, 64, 64, 3)),
    "MobileNet, 64 px, batch 32": (MobileNet, (32, 64, 64, 3)),
    "ConvNeXt, 64 px, batch 16": (ConvNeXt, (16, 64, 64, 3)),
    "audio, 4096 samples, batch 8": (Audio, (8, 4096, 1)),
    "three convolutions, 32 px, batch 32": (ThreeConvolutions, (32, 32, 32, 3)),
    "LeNet-5, batch 32": (LeNet5, (32, 28, 28, 1)),
    "ResNet-20, batch 32": (lambda: ResNetCifar(depth=20), (32, 32, 32, 3)),
    "ResNet-18, 224 px, batch 1": (ResNet, (1, 224, 224, 3)),
    "perceptron, batch 128": (MLP, (128, 28, 28, 1)),
    "transformer, batch 8": (lambda: Transformer(vocabulary=256), (8, 128)),
}
"""What is measured: a module, and the shape of its input."""
Pure = Callable[[Any, Any], Any]


def made(name: str) -> tuple[Any, Any, Pure, Pure]:
    """Return variables, an input, the forward pass and the derivative of a loss, both of ``(variables, x)``.

    Args:
      name: of the network.
    """
    make, shape = NETS[name]
    net = make()
    tokens = isinstance(net, Transformer)
    x = jax.random.randint(jax.random.key(1), shape, 0, 256) if tokens else jax.random.normal(jax.random.key(1), shape)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(net.init, jax.random.key(0), x)

    def filled(path: Any, leaf: Any) -> Any:
        last = path[-1].key
        if last in ("bias", "mean"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        if last in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        scale = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(filled, shapes)

    def forward(variables: Any, x: Any) -> Any:
        return net.apply(variables, x)

    def step(variables: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            options: dict[str, Any] = {} if tokens or isinstance(net, LeNet5) else {"train": True}
            out: Any
            state: Any
            if "batch_stats" not in variables:
                out, state = net.apply({"params": params}, x, **options), {}
            else:
                out, state = net.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(out.reshape(-1, out.shape[-1]))[:, 0].mean(), state

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return variables, x, forward, step
