"""Bytes of the programs in files: as `jax.export` writes them, in few operations, and with the library's dictionary.

    python -m experiments.benchmarks.program_bytes --out experiments/results/program_bytes.md
    python -m experiments.benchmarks.program_bytes --write lepton_jax/coding/programs.xz     # choose the dictionary anew

The dictionary is chosen from networks that are in no table: from a list of small ones, each is taken that those taken before do
not shorten to a half. Files name it by its place in the format: one that has been in a release is never changed.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import zstandard

from experiments.benchmarks.harness import arguments, origin, publish
from experiments.common.tables import markdown_table
from lepton_jax.artifact.program import PLATFORMS, export_native, export_program, serialize
from lepton_jax.coding.compression import compress
from lepton_jax.core.files import write_atomic
from lepton_jax.models import CNN, LeNet5, LeNet300, ResNet, ResNetCifar, Transformer
from lepton_jax.native import packed
from lepton_jax.quantization import Uniform, quantize

_LARGEST = 3 << 15


class Dense(nn.Module):
    """Layers of these widths, and what is between them."""

    widths: tuple[int, ...]
    activation: Callable[..., Any] = nn.relu
    norm: bool = False
    out: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = self.activation(nn.LayerNorm()(nn.Dense(width)(x)) if self.norm else nn.Dense(width)(x))
        return nn.Dense(self.out)(x)


class Convolutions(nn.Module):
    """Convolutions of these widths with pools or strides, norms, depthwise ones, and a head."""

    widths: tuple[int, ...]
    kernel: int = 3
    norm: bool = False
    pool: str = "max"
    padding: str = "SAME"
    depthwise: bool = False
    residual: bool = False
    mean: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            strides = (2, 2) if self.pool == "stride" else (1, 1)
            if self.depthwise:
                x = nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1], use_bias=False)(x)
            before = x = nn.Conv(width, (self.kernel, self.kernel), strides, padding=self.padding, use_bias=not self.norm)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x) if self.norm else x)
            if self.residual:
                x = nn.relu(before + nn.BatchNorm(use_running_average=True)(nn.Conv(width, (3, 3), use_bias=False)(x)))
            if self.pool in ("max", "avg"):
                x = {"max": nn.max_pool, "avg": nn.avg_pool}[self.pool](x, (2, 2), (2, 2))
        x = x.mean((1, 2)) if self.mean else nn.relu(nn.Dense(96)(x.reshape(x.shape[0], -1)))
        return nn.Dense(12)(x)


class Words(nn.Module):
    """Tokens to classes: recurrent, attending or averaged."""

    kind: str

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(200, 24)(tokens)
        if self.kind == "recurrent":
            x = nn.RNN(nn.OptimizedLSTMCell(20))(x)
        elif self.kind == "gated":
            x = nn.RNN(nn.GRUCell(20))(x)
        elif self.kind == "attention":
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(24)(nn.gelu(nn.Dense(48)(nn.LayerNorm()(x))))
        return nn.softmax(nn.Dense(6)(x.mean(1)))


def networks() -> Iterator[tuple[nn.Module, jax.Array]]:
    """Those that the dictionary is chosen from, the commonest last: what is near its end costs least."""
    image, tokens = jnp.zeros((2, 24, 24, 3)), jnp.zeros((2, 12), jnp.int32)
    for kind in ("recurrent", "gated", "attention", "mean"):
        yield Words(kind), tokens
    yield Transformer(90, depth=1, width=40, heads=2, mlp=80, max_length=20), jnp.zeros((2, 20), jnp.int32)
    for pool in ("stride", "avg", "max"):
        for norm in (False, True):
            for mean in (False, True):
                yield Convolutions((12, 24), norm=norm, pool=pool, mean=mean, residual=norm and mean), image
        yield (
            Convolutions((8, 20, 28), pool=pool, kernel=5, padding="VALID" if pool == "max" else "SAME"),
            jnp.zeros((2, 44, 44, 1)),
        )
    yield Convolutions((16, 24), pool="stride", depthwise=True, norm=True, mean=True), image
    for activation in (nn.tanh, nn.sigmoid, nn.silu, nn.gelu, nn.relu):
        for norm in (True, False):
            yield Dense((48, 20), activation, norm), jnp.zeros((2, 30))
    for widths in ((), (40,), (80, 60, 28), (200, 70)):
        yield Dense(widths, out=7), jnp.zeros((2, 6, 6))


def tested() -> Iterator[tuple[str, nn.Module, jax.Array]]:
    """The networks of the table."""
    yield "LeNet-300-100, digits", LeNet300(), jnp.zeros((2, 8, 8, 1))
    yield "LeNet-300-100, MNIST", LeNet300(), jnp.zeros((2, 28, 28, 1))
    yield "LeNet-5", LeNet5(), jnp.zeros((2, 28, 28, 1))
    yield "three convolutions", CNN(), jnp.zeros((2, 28, 28, 1))
    yield "ResNet-20", ResNetCifar(depth=20), jnp.zeros((2, 32, 32, 3))
    yield "ResNet-18", ResNet(classes=10, stem="small"), jnp.zeros((2, 32, 32, 3))
    yield "transformer", Transformer(65, depth=2), jnp.zeros((2, 64), jnp.int32)


def programs(model: nn.Module, inputs: jax.Array) -> list[tuple[Any, Any, Any]]:
    """A network, its weights, and how it is exported: dense, and run on weights in eight bits."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    small = jax.tree.map(lambda leaf: quantize(leaf, Uniform(bits=8)) if leaf.ndim > 1 else leaf, variables)

    def apply(variables: Any, inputs: jax.Array) -> Any:
        return model.apply(variables, inputs)

    return [(apply, variables, export_program), (apply, small, export_native)]


def zstd(data: bytes, dictionary: bytes) -> int:
    """Bytes of data that are coded after a dictionary."""
    words = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(19, write_checksum=False, write_content_size=False, dict_data=words).compress(data))


def choose() -> bytes:
    """The dictionary: programs that say what others have not said, the first at its end."""
    chosen: list[bytes] = []
    for model, inputs in reversed([*networks()]):
        for apply, tree, export in programs(model, inputs):
            data = serialize(export(apply, tree, (inputs,)).exported)
            known = b"".join(reversed(chosen))
            if not known or (zstd(data, known) > zstd(data, b"") / 2 and len(known) + len(data) <= _LARGEST):
                chosen.append(data)
                print(f"{type(model).__name__}: {len(known) + len(data)} bytes", flush=True)
    return b"".join(reversed(chosen))


def table() -> Iterator[tuple[str, ...]]:
    """Bytes of each network's program on the three ways; the first is jax's own, compressed by what does best of three."""
    yield ("network", "program", "jax.export", "fewer operations", "dictionary", "of jax.export's")
    for name, model, inputs in tested():
        for kind, (apply, tree, export) in zip(("float", "int8"), programs(model, inputs)):
            axes = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, ...", like=inputs.shape), inputs.dtype)
            leaves, treedef = jax.tree.flatten(tree)
            run = packed(apply) if kind == "int8" else apply

            def flat(leaves: list[jax.Array], inputs: jax.Array, run: Any = run, treedef: Any = treedef) -> Any:
                return run(jax.tree.unflatten(treedef, leaves), inputs)

            before = jax.export.export(jax.jit(flat), platforms=PLATFORMS)(leaves, axes).serialize()
            after = serialize(export(apply, tree, (inputs,)).exported)
            sizes = [len(compress(before)[1]), len(compress(after)[1]), len(compress(after, program=True)[1])]
            yield (name, kind, *(f"{size:,}" for size in sizes), f"{sizes[2] / sizes[0]:.2f}")


def main() -> None:
    """Print the table, or choose the dictionary."""
    options = arguments(__doc__, out=True, write=("", "choose the dictionary, and write it here"))
    if options.write:
        write_atomic(Path(options.write), lzma.compress(choose(), preset=9 | lzma.PRESET_EXTREME))
        return
    publish([origin("program_bytes --out experiments/results/program_bytes.md"), "", *markdown_table([*table()])], options.out)


if __name__ == "__main__":
    main()
