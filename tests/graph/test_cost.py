"""Costs equal hand counts exactly, and XLA's own within 5 %."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core.paths import flatten
from lepton_jax.formats import Uniform
from lepton_jax.graph.cost import cost
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.summary import summary
from lepton_jax.graph.trace import trace
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.quantize import quantize
from lepton_jax.models import ResNet, ResNetCifar, Transformer

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS


def conv(strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1, stretch=(1, 1)):
    def apply(v, x):
        return jax.lax.conv_general_dilated(
            x,
            v["kernel"],
            strides,
            padding,
            lhs_dilation=stretch,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


def shapes(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# output elements x kernel elements of one group, by hand
@pytest.mark.parametrize(
    ("apply", "kernel", "image", "expected"),
    [
        (conv(), (3, 3, 4, 8), (2, 10, 12, 4), 2 * 10 * 12 * 8 * 9 * 4),
        (conv(strides=(2, 3)), (3, 3, 4, 8), (2, 10, 12, 4), 2 * 5 * 4 * 8 * 9 * 4),
        (conv(padding="VALID", dilation=(2, 1)), (3, 2, 4, 8), (1, 10, 12, 4), 6 * 11 * 8 * 6 * 4),
        (conv(groups=4), (3, 3, 1, 8), (1, 6, 6, 4), 6 * 6 * 8 * 9),
        (conv(padding=((0, 3), (1, 0)), groups=2), (2, 2, 2, 6), (1, 5, 5, 4), 7 * 5 * 6 * 8),
        (conv(padding=((1, 1), (1, 1)), stretch=(2, 2)), (3, 3, 2, 5), (1, 4, 4, 2), 7 * 7 * 5 * 18),
    ],
)
def test_convolutions_by_hand(apply, kernel, image, expected):
    found = cost(apply, {"kernel": shapes(*kernel)}, shapes(*image))
    assert found.macs == expected
    assert found.parameters["kernel"].macs == expected
    analysis = jax.jit(apply).lower({"kernel": shapes(*kernel)}, shapes(*image)).cost_analysis()
    # Less what meets padding, this is XLA's own count.
    assert found.flops == analysis["flops"]


@pytest.mark.parametrize(
    ("text", "one", "two", "expected"),
    [
        ("bm,mn->bn", (5, 3), (3, 7), 5 * 3 * 7),
        ("bhqd,bhkd->bhqk", (2, 3, 4, 6), (2, 3, 5, 6), 2 * 3 * 4 * 5 * 6),
        ("bhd,hdo->bo", (2, 3, 4), (3, 4, 5), 2 * 3 * 4 * 5),
        ("i,i->", (9,), (9,), 9),
    ],
)
def test_dots_by_hand(text, one, two, expected):
    found = cost(lambda v, x: jnp.einsum(text, x, v), shapes(*two), shapes(*one))
    assert found.macs == expected
    assert found.flops == 2 * expected


def test_scan_multiplies_and_branches_do_not_add():
    def apply(v, x):
        x, _ = jax.lax.scan(jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None)), x, v["layers"])
        x = jax.lax.cond(x.sum() > 0, lambda a: a @ v["head"], lambda a: -a @ v["head"], x)
        return jax.lax.while_loop(lambda c: c.sum() < 0, lambda c: c @ v["again"], x)

    variables = {"layers": shapes(7, 4, 4), "head": shapes(4, 3), "again": shapes(3, 3)}
    found = cost(apply, variables, shapes(2, 4))
    assert {path: p.macs for path, p in found.parameters.items()} == {"layers": 7 * 32, "head": 24, "again": 18}
    assert found.loops == ("while",)


def test_bytes_and_nonzeros():
    w = jnp.array([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    variables = {"a": w, "b": w.astype(jnp.bfloat16), "c": quantize(w, Uniform(bits=4)), "d": LowRank(w[:, :1], w[:1], (3, 2))}
    found = cost(lambda v, x: sum(x @ v[k].astype(x.dtype) for k in "abcd"), variables, jnp.ones((5, 3)))
    parameters = found.parameters
    assert [parameters[k].bytes for k in "abcd"] == [24, 12, 3 + 4 + 4, 12 + 8]
    assert [parameters[k].nonzeros for k in "abcd"] == [3, 3, 3, 2 + 1]
    assert [parameters[k].bits for k in "ab"] == [32, 16]
    assert parameters["a"].sparsity == 0.5
    assert [parameters[k].macs for k in "abcd"] == [30] * 4
    assert [parameters[k].nonzero_macs for k in "abcd"] == [15] * 4
    assert found.parameter_bytes == 24 + 12 + 11 + 20
    dots = [op for op in found.operations if op.primitive == "dot_general"]
    assert [op.activation_bytes for op in dots] == [40] * 4
    # A cast of a weight writes no activation.
    assert all(op.activation_bytes == 0 for op in found.operations if op.primitive == "convert_element_type")


def test_two_thin_dots_cost_what_the_account_says():
    leaf = LowRank(jnp.ones((64, 3)), jnp.ones((3, 32)), (64, 32))
    found = cost(lambda v, x: x @ v, leaf, shapes(10, 64))
    assert (found.macs, found.nonzero_macs) == (10 * 64 * 32, 10 * 64 * 3 + 10 * 3 * 32)


def test_origins_go_through_calls_and_loops():
    def apply(v, x):
        w = jax.jit(lambda a: a / jnp.linalg.norm(a))(v["w"])
        w, _ = jax.lax.scan(lambda c, _: (c * v["scale"], None), w, None, length=2)
        y, _ = jax.lax.scan(lambda c, _: (c * v["scale"], c), x, None, length=2)
        return y @ w

    traced = trace(apply, {"w": shapes(3, 3), "scale": shapes()}, shapes(3, 3))
    found = origins(traced)
    [dot] = [eqn for eqn in traced.equations() if eqn.primitive == "dot_general"]
    assert operand_origins(found, dot) == [None, frozenset({"w", "scale"})]
    assert cost(apply, {"w": shapes(3, 3), "scale": shapes()}, shapes(3, 3)).parameters["w"].macs == 27


def test_unknown_calls_are_named():
    def apply(v, x):
        return jax.lax.custom_linear_solve(lambda a: v @ a, x, lambda _, b: jnp.linalg.inv(v) @ b, symmetric=True)

    assert "custom_linear_solve" in cost(apply, jnp.eye(2), jnp.ones(2)).unknown


def agreement(apply, variables, *inputs):
    analysis = jax.jit(apply).lower(variables, *inputs).cost_analysis()
    return cost(apply, variables, *inputs).flops / analysis["flops"]


def test_models_agree_with_xla():
    """ResNet-20, ResNet-50 and the transformer, from shapes alone."""
    cases = (
        (ResNetCifar(), shapes(2, 32, 32, 3)),
        (ResNet(blocks=(3, 4, 6, 3), block="bottleneck"), shapes(1, 224, 224, 3)),
        (Transformer(vocabulary=64), shapes(2, 64, dtype=jnp.int32)),
    )
    for model, inputs in cases:
        variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        assert abs(agreement(model.apply, variables, inputs) - 1) < 0.05, model


@pytest.mark.parametrize("name", MODELS)
def test_no_model_aborts_it(name):
    apply, variables, inputs, keywords = MODELS[name]
    found = cost(apply, variables, *inputs, **keywords)
    assert found.macs > 0
    assert found.unknown == ()
    assert set(found.parameters) == set(flatten(variables))
    kernels = [p for path, p in found.parameters.items() if path.endswith(("kernel", "conv/kernel", "w"))]
    assert kernels
    assert all(p.macs > 0 for p in kernels)


def test_resnet20_by_hand():
    variables = jax.eval_shape(ResNetCifar().init, jax.random.key(0), shapes(1, 32, 32, 3))
    stages = [(32, 16, 16), (16, 16, 32), (8, 32, 64)]
    expected = 32 * 32 * 16 * 27 + 64 * 10
    for size, before, width in stages:
        expected += size**2 * width * 9 * (before + 5 * width)
    assert cost(ResNetCifar().apply, variables, shapes(1, 32, 32, 3)).macs == expected


def test_summary_has_a_row_for_every_module(capsys):
    variables = {
        "conv": {"kernel": np.ones((3, 3, 2, 4), np.float32), "bias": jnp.zeros(4)},
        "head": {"kernel": quantize(jnp.ones((4, 3)), Uniform(bits=8))},
    }

    def apply(v, x):
        x = conv()({"kernel": v["conv"]["kernel"]}, x) + v["conv"]["bias"][None, None, None]
        x = x.mean((1, 2)) @ v["head"]["kernel"]
        return x @ x.T

    text = summary(apply, variables, jnp.ones((2, 5, 5, 2)))
    assert capsys.readouterr().out == text + "\n"
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert list(rows) == ["module", "conv", "head", "(dot_general)", "total"]
    assert rows["conv"][1:6] == ["(2,", "5,", "5,", "4)", "76"]
    assert rows["conv"][6] == f"{2 * 25 * 4 * 18:,}"
    assert rows["head"][4:] == ["24", "0.7%", "0.0%", "13.3", "20"]
    assert rows["(dot_general)"][4] == "12"
    assert rows["total"][2] == f"{2 * 25 * 4 * 18 + 24 + 12:,}"
