"""Parameter counts by hand or as published, shapes and dtypes; nothing is compiled here."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from lepton_jax.models import CNN, LeNet5, LeNet300, ResNet, ResNetCifar, Transformer

MODELS = [
    (LeNet300(), (28, 28, 1), 266_610),  # 784*300+300 + 300*100+100 + 100*10+10
    (LeNet300(hidden=(300, 100)), (8, 8, 1), 64 * 300 + 300 + 30_100 + 1010),
    (LeNet300(classes=3, hidden=()), (5,), 18),
    (LeNet5(), (28, 28, 1), 431_080),  # 520 + 25_050 + 400_500 + 5_010
    (LeNet5(classes=4, features=(2, 3, 5)), (28, 28, 1), 52 + 153 + (48 * 5 + 5) + 24),
    (CNN(), (8, 8, 1), 9 * 16 + 32 + 9 * 16 * 32 + 64 + 9 * 32 * 64 + 128 + 650),
    (CNN(features=(4, 4, 4)), (28, 28, 1), 36 + 8 + 2 * (144 + 8) + 16 * 4 * 10 + 10),
    (ResNetCifar(), (32, 32, 3), 269_722),
    # Option B adds two 1x1 convolutions and their norms: 16*32 + 64 and 32*64 + 128.
    (ResNetCifar(shortcut="projection"), (32, 32, 3), 269_722 + 576 + 2176),
    (ResNetCifar(depth=32), (32, 32, 3), 464_154),
    (ResNet(), (224, 224, 3), 11_689_512),
    (ResNet(blocks=(3, 4, 6, 3)), (224, 224, 3), 21_797_672),
    (ResNet(blocks=(3, 4, 6, 3), block="bottleneck"), (224, 224, 3), 25_557_032),
    (ResNet(classes=10, stem="small"), (32, 32, 3), 11_173_962),
]
DECODER = {"vocabulary": 11, "depth": 2, "width": 8, "heads": 2, "mlp": 16, "max_length": 6}
BLOCK = 4 * (64 + 8) + 2 * 16 + (8 * 16 + 16) + (16 * 8 + 8)


def shapes(model: nn.Module, x: jax.Array, **options):
    return jax.eval_shape(lambda key: model.init_with_output(key, x, **options), jax.random.key(0))


def count(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("model", "shape", "parameters"), MODELS)
def test_counts_shapes_and_dtypes(model: nn.Module, shape: tuple[int, ...], parameters: int):
    for batch in (1, 5):
        logits, variables = shapes(model, jnp.zeros((batch, *shape)))
        assert count(variables) == parameters
        assert (logits.shape, logits.dtype) == ((batch, model.classes), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "model",
    [LeNet300(dtype=jnp.bfloat16), LeNet5(dtype=jnp.bfloat16), CNN(dtype=jnp.bfloat16), ResNetCifar(dtype=jnp.bfloat16)]
    + [ResNet(block=block, blocks=(1, 1), dtype=jnp.bfloat16) for block in ("basic", "bottleneck")],
)
def test_compute_dtype_leaves_parameters_in_float32(model: nn.Module):
    logits, variables = shapes(model, jnp.zeros((2, 32, 32, 1)))
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(("position", "table"), [("learned", 6 * 8), ("rotary", 0)])
@pytest.mark.parametrize(("tied", "head"), [(False, 88), (True, 0)])
def test_decoder_counts(position: str, table: int, tied: bool, head: int):
    model = Transformer(**DECODER, position=position, tied=tied, dtype=jnp.bfloat16)
    logits, variables = shapes(model, jnp.zeros((3, 5), jnp.int32))
    assert count(variables) == 88 + table + 2 * BLOCK + 16 + head
    assert (logits.shape, logits.dtype) == ((3, 5, 11), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_misspelt_and_impossible_options_are_refused():
    for call, message in [
        (lambda: ResNet(stem="smal"), "stem must be one of 'imagenet', 'small'; got 'smal'"),
        (lambda: ResNet(block="bottelneck"), "block must be one of 'basic', 'bottleneck'; got 'bottelneck'"),
        (lambda: ResNetCifar(shortcut="A"), "shortcut must be one of 'pad', 'projection'; got 'A'"),
        (lambda: ResNetCifar(depth=18), r"depth must be 6 n \+ 2 .* got 18"),
        (lambda: Transformer(**DECODER | {"heads": 3}), "heads must divide width; got 3 heads and width 8"),
        (lambda: Transformer(**DECODER | {"heads": 8}, position="rotary"), "heads of even width; got 8 / 8"),
        (lambda: Transformer(**DECODER, position="rope"), "position must be one of 'learned', 'rotary'"),
        (lambda: shapes(Transformer(**DECODER), jnp.zeros((1, 7), jnp.int32)), "may have 6 tokens; got 7. Raise max_length"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
