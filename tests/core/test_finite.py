"""Weights that are not finite are refused by their paths, wherever they would be lost."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Model, compress_model, fake_quant, low_rank, prune, prune_model, quantize_model
from lepton_jax.core.finite import check_finite, not_finite
from lepton_jax.lowrank import Budget, Energy, choose_ranks, dora, lora, qlora, reduce_rank
from lepton_jax.pruning import NofM, channels, iterative_masks, sparsegpt_prune
from lepton_jax.pruning.criteria import Magnitude
from lepton_jax.pruning.sparse_training import dynamic_surgery, lottery, soft_threshold
from lepton_jax.quantization import (
    Binary,
    BitSchedule,
    Codebook,
    Gptq,
    Nearest,
    Uniform,
    dorefa,
    lsq,
    quantize_layers,
    scheduled_quant,
    stochastic_quant,
)

KEY = jax.random.key(0)


def apply(v: dict, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ v["a"]["kernel"] + v["a"]["bias"][None]) @ v["b"]["kernel"]


def bad(value: float = np.nan) -> dict:
    draw = np.random.default_rng(31).normal
    kernel = draw(size=(6, 4)).astype(np.float32)
    kernel[2, 1] = value
    return {
        "a": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(4)},
        "b": {"kernel": jnp.asarray(draw(size=(4, 3)), jnp.float32)},
    }


X = jnp.ones((5, 6))
CALLS: dict[str, Callable] = {
    "prune_model": lambda v: prune_model(Model(apply, v), sparsity=0.5),
    "prune_model global": lambda v: prune_model(Model(apply, v), sparsity=0.5, scope="global"),
    "prune_model 2:4": lambda v: prune_model(Model(apply, v), sparsity=0.5, structure=NofM(n=2, m=4, pad=True)),
    "quantize_model": lambda v: quantize_model(Model(apply, v), 4),
    "quantize_model codebook": lambda v: quantize_model(Model(apply, v), Codebook(bits=2)),
    "quantize_model binary": lambda v: quantize_model(Model(apply, v), Binary()),
    "compress_model": lambda v: compress_model(Model(apply, v), rank=1),
    "prune": lambda v: prune(0.5).init(v),
    "fake_quant": lambda v: fake_quant(4).init(v),
    "fake_quant pack": lambda v: fake_quant(4).pack(v, ()),
    "fake_quant codebook": lambda v: fake_quant(Codebook(bits=2)).init(v),
    "dorefa": lambda v: dorefa(3).init(v),
    "lsq": lambda v: lsq(3).init(v),
    "stochastic_quant": lambda v: stochastic_quant(4, KEY).init(v),
    "scheduled_quant": lambda v: scheduled_quant(BitSchedule(begin=(1,), bits=(4,))).init(v),
    "quantize_layers": lambda v: quantize_layers(apply, v, [X], Uniform(4), Nearest(), progress=False),
    "gptq": lambda v: quantize_layers(apply, v, [X], Uniform(4), Gptq(), progress=False),
    "low_rank": lambda v: low_rank(1).init(v),
    "reduce_rank": lambda v: reduce_rank(2, 0.5).init(v),
    "lora": lambda v: lora(1, KEY).init(v),
    "dora": lambda v: dora(1, KEY).init(v),
    "qlora": lambda v: qlora(1, KEY).init(v),
    "choose_ranks energy": lambda v: choose_ranks(v, Energy(energy=0.9)),
    "choose_ranks budget": lambda v: choose_ranks(v, Budget(fraction=0.5)),
    "dynamic_surgery": lambda v: dynamic_surgery(0.0, KEY, end=3).init(v),
    "soft_threshold": lambda v: soft_threshold().init(v),
    "lottery": lambda v: list(lottery(v, lambda params, masks: params, rounds=1)),
    "iterative_masks": lambda v: iterative_masks(Magnitude(), v, 0.5, 2, progress=False),
    "sparsegpt_prune": lambda v: sparsegpt_prune(apply, v, [X], 0.5, progress=False),
    "plan": lambda v: channels.plan(apply, v, X, fraction=0.5),
    "plan of macs": lambda v: channels.plan(apply, v, X, fraction=0.5, of="macs", ranking="global"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_weight_that_is_not_finite_is_refused_by_its_path(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="finite") as error:
        CALLS[name](bad(value))
    assert "a/kernel" in str(error.value)
    assert "b/kernel" not in str(error.value)


@pytest.mark.parametrize("name", CALLS)
def test_finite_weights_pass(name: str) -> None:
    assert CALLS[name](bad(0.5)) is not None


def test_a_bias_that_is_not_finite_is_no_weight_and_is_named_by_a_plan() -> None:
    v = bad(1.0)
    v["a"]["bias"] = v["a"]["bias"].at[0].set(jnp.nan)
    prune_model(Model(apply, v), sparsity=0.5)
    with pytest.raises(ValueError, match=r"a/bias: 1 of 4 values are NaN or infinite"):
        channels.plan(apply, v, X, fraction=0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2", "float32"])
def test_every_dtype_is_looked_at(dtype: str) -> None:
    tree = {"a": jnp.array([1.0, jnp.nan]).astype(dtype), "b": jnp.ones(2, dtype), "c": jnp.arange(2), "d": jnp.zeros((0, 3))}
    assert not_finite(tree) == ["a"]
    with pytest.raises(ValueError, match="a: 1 of 2 values"):
        check_finite("here", {path: tree[path] for path in "ab"})


def test_what_is_traced_passes() -> None:
    jax.jit(lambda v: low_rank(1).init(v)[0])(bad())
    jax.eval_shape(lambda v: fake_quant(4).init(v)[0], bad())
    check_finite("here", {"a": jax.ShapeDtypeStruct((2,), jnp.float32)})
