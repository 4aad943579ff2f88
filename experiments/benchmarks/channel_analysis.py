"""Time of the channel analysis (trace, labels, groups, a plan of half the channels), shapes only.

Command: python -m experiments.benchmarks.channel_analysis
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.benchmarks.harness import processor_seconds
from lepton_jax.models import ResNet
from lepton_jax.pruning.channels import Random, plan


class Block(nn.Module):
    """A pre-norm encoder block."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y), None


class Encoder(nn.Module):
    """A vision transformer; ViT-B by default. Its blocks are unrolled, or one scan."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    scan: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (16, 16), (16, 16))(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("position", nn.initializers.normal(), (1, x.shape[1], self.width))
        if self.scan:
            blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = blocks(self.width, self.heads)(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block(self.width, self.heads)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(axis=1))


def measure(name: str, model: nn.Module) -> None:
    """Print the seconds that a plan takes, the best of three, and what it found."""
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply: Callable[..., Any] = model.apply
    made = partial(plan, apply, variables, images, fraction=0.5, criterion=Random(key=jax.random.key(0)))
    found = [processor_seconds(made) for _ in range(3)]
    seconds, groups = min(took for took, _ in found), found[0][1].groups
    channels = sum(group.size for group in groups)
    print(f"{name:34s} {seconds:6.2f} s  {len(groups):4d} groups  {channels:6d} channels", flush=True)


def main() -> None:
    """Measure all."""
    measure("ResNet-50", ResNet(blocks=(3, 4, 6, 3), block="bottleneck"))
    measure("ViT-B, 12 blocks unrolled", Encoder())
    for depth in (12, 24, 48):
        measure(f"transformer, {depth} blocks unrolled", Encoder(depth=depth, width=256, heads=4))
    for depth in (24, 96):
        measure(f"transformer, {depth} blocks scanned", Encoder(depth=depth, width=256, heads=4, scan=True))


if __name__ == "__main__":
    main()
