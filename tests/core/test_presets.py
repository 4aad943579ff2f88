"""Short names stand for settings, and settings of a wrong kind are refused where they are given, in one line."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from uniform_by_hand import rounded

from lepton_jax import Model, cast, compress_model, distill_model, fake_quant, prune, prune_model, quantize_model, save_model
from lepton_jax.core.presets import preset
from lepton_jax.formats import MX, Binary, Float8, NormalFloat4, Ternary, Uniform, named_format
from lepton_jax.formats.presets import PRESETS
from lepton_jax.lowrank import qlora
from lepton_jax.precision import Policy, autocast
from lepton_jax.pruning import NofM
from lepton_jax.pruning.structures import named_structure
from lepton_jax.quantization import (
    BitSchedule,
    Codebook,
    Nearest,
    Percentile,
    Rule,
    lsq,
    quantize_activations,
    quantize_layers,
    scheduled_quant,
    stochastic_quant,
)

KEY = jax.random.key(0)
DRAW = np.random.default_rng(8)
W = {"w": jnp.asarray(DRAW.normal(size=(256, 8)), jnp.float32)}
X = jnp.asarray(DRAW.normal(size=(3, 256)), jnp.float32)


def apply(v: dict, x: jax.Array) -> jax.Array:
    return x @ v["w"]


EXPECTED = {
    "int2": Uniform(2, channel_axis="out"),
    "int4": Uniform(4, channel_axis="out"),
    "int8": Uniform(8, channel_axis="out"),
    "int16": Uniform(16, channel_axis="out"),
    "int4_g128": Uniform(4, group_size=128),
    "int3_g64": Uniform(3, group_size=64),
    "int8_g32": Uniform(8, group_size=32),
    "fp8": Float8(channel_axis="out"),
    "nf4": NormalFloat4(),
    "mxfp4": MX("float4_e2m1fn"),
    "mxfp8": MX("float8_e4m3fn"),
    "binary": Binary(channel_axis="out"),
    "ternary": Ternary(channel_axis="out"),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_number_of_bits_is_the_same_format_wherever_it_is_given(bits: int) -> None:
    """Signed symmetric integers with a scale for each output channel, against float64."""
    expected = rounded(np.asarray(W["w"], np.float64), Uniform(bits), axes=(0,))
    once = BitSchedule(begin=(0,), bits=(bits,))
    transforms = {
        "fake_quant": fake_quant(bits),
        "fake_quant, by name": fake_quant(bits=bits),
        "scheduled_quant": scheduled_quant(once),
        "a short name": fake_quant(f"int{bits}"),
    }
    for name, transform in transforms.items():
        np.testing.assert_allclose(transform.view(*transform.init(W))["w"], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    packed = {
        "quantize_model": quantize_model(Model(apply, W), bits).variables["w"],
        "quantize_layers": quantize_layers(apply, W, [X], bits, Nearest(), progress=False)[0]["w"],
        "lsq": lsq(bits).pack(*lsq(bits).init(W))["w"],
        "stochastic_quant": stochastic_quant(bits, KEY).pack(*stochastic_quant(bits, KEY).init(W))["w"],
        "qlora": qlora(1, KEY, format=bits).init(W)[1].base["w"],
    }
    for name, leaf in packed.items():
        assert leaf.format == Uniform(bits, channel_axis=-1), name
    assert fake_quant(bits=bits, channel_axis=None).pack(*fake_quant(bits=bits, channel_axis=None).init(W))["w"].scale.size == 1
    assert fake_quant(bits=bits, group_size=32).pack(*fake_quant(bits=bits, group_size=32).init(W))["w"].scale.shape == (8, 8)


@pytest.mark.parametrize("name", PRESETS)
def test_a_short_name_is_the_format_wherever_it_is_given(name: str) -> None:
    fmt = PRESETS[name]
    assert fmt == EXPECTED.get(name, fmt)
    assert named_format("here", name) is fmt
    assert quantize_model(Model(apply, W), name).variables["w"].format == fmt.at(None)
    params, state = fake_quant(name).init(W)
    np.testing.assert_array_equal(fake_quant(name).view(params, state)["w"], fake_quant(fmt).view(params, state)["w"])
    new, _ = quantize_layers(apply, W, [X], name, Nearest(), progress=False)
    assert new["w"].format == fmt.at(None)
    assert qlora(1, KEY, format=name).init(W)[1].base["w"].format == fmt.at(None)
    if isinstance(fmt, Uniform):
        assert lsq(name).pack(*lsq(name).init(W))["w"].format == fmt.at(None)
        rounding = stochastic_quant(name, KEY)
        assert rounding.pack(*rounding.init(W))["w"].format == fmt.at(None)


def test_formats_by_path_may_be_short_names() -> None:
    new, _ = quantize_layers(apply, W, [X], {"w": "int4_g128"}, Nearest(), progress=False)
    assert new["w"].format == Uniform(4, group_size=128)


@pytest.mark.parametrize("name", ["1:2", "1:4", "2:4", "2:8", "4:8"])
def test_n_of_m_by_its_name(name: str) -> None:
    n, m = map(int, name.split(":"))
    assert named_structure("here", name) == NofM(n=n, m=m)
    masks = prune(1 - n / m, structure=name).init(W)[1].masks
    np.testing.assert_array_equal(np.asarray(masks["w"]).reshape(-1, m, 8).sum(1), n)
    model = prune_model(Model(apply, W), sparsity=1 - n / m, structure=name)
    np.testing.assert_array_equal(model.variables["w"], np.where(masks["w"], W["w"], 0))


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("f16", "float16"), ("fp32", "float32")]
)
def test_dtypes_by_their_short_names(name: str, dtype: str) -> None:
    assert cast(name).view(W, ())["w"].dtype == dtype
    assert Policy(compute_dtype=name) == Policy(compute_dtype=dtype)
    out = jax.jit(autocast(apply, Policy(compute_dtype=name)))(W, X)
    np.testing.assert_array_equal(out, jax.jit(autocast(apply, Policy(compute_dtype=dtype)))(W, X))


def int8(x: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Rounded to symmetric integers with a scale for each index of the other axis, in float64."""
    return rounded(x, Uniform(bits), (axis,))


@pytest.mark.parametrize(("name", "bits"), [("w8a8", 8), ("w4a8", 4)])
def test_weights_and_activations_by_one_name(name: str, bits: int) -> None:
    wide, x = np.asarray(W["w"], np.float64), np.asarray(X, np.float64)
    expected = int8(x, 1) @ int8(wide, 0, bits)
    np.testing.assert_allclose(jax.jit(quantize_activations(apply, name))(W, X), expected, rtol=1e-4, atol=1e-4)
    model = quantize_model(Model(apply, W, (X,)), name)
    assert model.variables["w"].format == Uniform(bits, channel_axis=-1)
    np.testing.assert_allclose(model(X), expected, rtol=1e-4, atol=1e-4)
    assert [step.text for step in model.applied] == [f"quantize({bits} bits)", f"quantize_activations({name})"]


WRONG: dict[str, tuple[Callable, str]] = {
    "criterion": (lambda: prune(0.5, criterion="magnitude"), r"prune: criterion must be .*criterion=Magnitude\(\)"),
    "criterion class": (lambda: prune(0.5, criterion=NofM), "prune: criterion must be"),
    "structure": (lambda: prune(0.5, structure="2:5"), r"prune: structure must be one of '1:2', .*'2:4'.*; got '2:5'"),
    "structure kind": (lambda: prune(0.5, structure=(2, 4)), r"prune: structure must be a structure, e.g. NofM\(n=2, m=4\)"),
    "allocation": (lambda: prune(0.5, allocation="erk"), "prune: allocation must be a function .*lepton_jax.pruning.erk"),
    "sparsity text": (lambda: prune("0.5"), "prune: sparsity must be a number .*; got '0.5'"),
    "sparsity None": (lambda: prune(None), "prune: sparsity must be a number"),
    "sparsity list": (lambda: prune([0.5, 0.6]), "prune: sparsity must be a number"),
    "format name": (lambda: fake_quant("int9"), r"fake_quant: format must be one of 'int2', .*; got 'int9'"),
    "format kind": (lambda: fake_quant(Percentile), "fake_quant: format must be a Format or a Codebook"),
    "quantize_model": (lambda: quantize_model(Model(apply, W), "w2a2"), "format must be one of .*'w8a8'.*; got 'w2a2'"),
    "quantize_layers": (lambda: quantize_layers(apply, W, [X], "q4", Nearest(), progress=False), "format of w must be one of"),
    "format of layers": (
        lambda: quantize_layers(apply, W, [X], Nearest(), Nearest(), progress=False),
        "quantize_layers: fmt must be a Format",
    ),
    "lsq": (lambda: lsq("fp8"), "lsq: format must be a Uniform"),
    "qlora": (lambda: qlora(1, KEY, format=Nearest()), "qlora: format must be a Format"),
    "rules": (lambda: quantize_activations(apply, "w8"), "rules must be one of 'w8a8', 'w4a8'"),
    "rules kind": (lambda: quantize_activations(apply, 8), "rules must be of the class Rule"),
    "dtype": (lambda: cast("bf8"), "cast: compute_dtype must be a floating dtype, e.g. 'bfloat16'; got 'bf8'"),
    "no dtype": (lambda: cast(None), "cast: compute_dtype must be"),
    "policy": (lambda: Policy("bfloat16"), r"Policy: settings are given by name, Policy\(compute_dtype='bfloat16'\)"),
    "calibration": (lambda: fake_quant(4, calibration="mse"), "fake_quant: calibration must be a Calibration"),
    "calibration class": (lambda: fake_quant(4, calibration=Percentile), "fake_quant: calibration must be a Calibration"),
    "stochastic": (lambda: stochastic_quant(4, KEY, calibration=3), "stochastic_quant: calibration must be a Calibration"),
    "lsq calibration": (lambda: lsq(4, calibration=3), "lsq: calibration must be a Calibration"),
    "schedule": (
        lambda: scheduled_quant(BitSchedule(begin=(1,), bits=(4,)), calibration="mse"),
        "scheduled_quant: calibration must be a Calibration",
    ),
    "qlora calibration": (lambda: qlora(1, KEY, calibration="mse"), "qlora: calibration must be a Calibration"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_of_the_wrong_kind_is_refused_where_it_is_given(name: str) -> None:
    call, says = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=says) as error:
        call()
    assert "\n" not in str(error.value)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Layer:
    """A module that holds its own arrays, and is a function."""

    weight: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight @ x

    def tree_flatten(self) -> tuple:
        return (self.weight,), None

    @classmethod
    def tree_unflatten(cls, static: None, leaves: tuple) -> "Layer":
        return cls(*leaves)


LINEAR = nnx.Linear(2, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (LINEAR, r"flax.nnx module Linear. Write Model.from_nnx\(module, x\)"),
        (nn.Dense(3), r"flax.linen module Dense. Write Model.from_linen"),
        (Layer(jnp.eye(2)), "Layer, a module that holds its own arrays. Write params, static = eqx.partition"),
        ({"w": 1.0}, "got a dict"),
        (3, "got (3|a int)"),
    ],
    ids=["nnx", "linen", "pytree", "dict", "int"],
)
def test_a_module_in_place_of_a_model_or_a_function_is_told_how(given: object, says: str) -> None:
    calls: list[Callable] = [
        lambda m: Model(m, {"w": jnp.ones(2)}),
        lambda m: prune_model(m, sparsity=0.5),
        lambda m: quantize_model(m, 4),
        lambda m: compress_model(m, rank=1),
        lambda m: save_model(m, "never-written.lepton"),
        lambda m: distill_model(m, Model(apply, W), X, progress=False),
        lambda m: distill_model(Model(apply, W), m, X, progress=False),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=says) as error:
            call(given)
        assert "\n" not in str(error.value)


def test_functions_of_all_kinds_make_models() -> None:
    bound = jax.tree_util.Partial(lambda c, v, x: c * (x @ v["w"]), jnp.float32(2))
    for function in (apply, partial(apply), jax.jit(apply), bound, Codebook and apply):
        assert Model(function, W)(X).shape == (3, 8)


def test_what_is_no_text_is_returned_as_it_is() -> None:
    rule = Rule(quantizer=None)
    assert preset("here", rule, {}) is rule
