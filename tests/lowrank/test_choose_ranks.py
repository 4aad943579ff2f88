"""What stays dense, and that it is said why."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import low_rank
from lepton_jax.core import paths
from lepton_jax.lowrank.layer_times import dense_macs, layer_times
from lepton_jax.lowrank.ranks import Energy, Fixed, Fraction, Guarded, choose_ranks, keep_faster
from lepton_jax.lowrank.svd import Svd

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": jnp.asarray(RNG.normal(size=(3, 3, 4, 8)), jnp.float32),
    "head": jnp.asarray(RNG.normal(size=(8, 10)), jnp.float32),
    "bias": jnp.zeros(10),
}
IMAGES = jax.ShapeDtypeStruct((2, 6, 6, 4), jnp.float32)


def apply(params: dict, x: jax.Array) -> jax.Array:
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.mean((1, 2)) @ params["head"] + params["bias"][None]


def test_what_is_not_smaller_stays_dense_and_says_so() -> None:
    report = choose_ranks(PARAMS, Fixed(rank=5))
    assert report.ranks == {"conv": 5}
    assert report.reasons == {"head": "factors of rank 5 are not smaller: 90 numbers"}
    text = str(report)
    assert "conv (3, 3, 4, 8): rank 5, 288 -> 220 numbers" in text
    assert "head (8, 10): dense, factors of rank 5" in text
    assert text.endswith("1 of 2 weights in factors: 368 -> 300 numbers")
    params, _ = low_rank(report.ranks).init(PARAMS)
    stored = paths.flatten(params)
    assert sum(math.prod(leaf.shape) for path, leaf in stored.items() if path != "bias") == report.parameters == 300
    assert params["head"] is PARAMS["head"]
    assert Guarded(rule=Fixed(rank=5)).ranks({p: PARAMS[p] for p in ("conv", "head")}, Svd()) == {"conv": 5}


def test_what_a_method_cannot_do_or_a_rule_leaves_out_stays_dense() -> None:
    report = choose_ranks(PARAMS, Fixed(rank=1), method=Svd(rows=2))
    assert "head" not in report.ranks
    assert "cannot factorize it" in report.reasons["head"]
    report = choose_ranks(PARAMS, {"conv": 2})
    assert report.ranks == {"conv": 2}
    assert report.reasons == {"head": "as the rule says"}
    with pytest.raises(ValueError, match="matches no floating leaf"):
        choose_ranks(PARAMS, Energy(energy=0.5), select="missing")


def test_what_is_measured_slower_stays_dense() -> None:
    report = choose_ranks(PARAMS, Fixed(rank=2))
    assert set(report.ranks) == {"conv", "head"}
    measured = keep_faster(report, apply, PARAMS, IMAGES, least=1e9, rounds=2)  # nothing is that much faster
    assert measured.ranks == {}
    assert all("measured and are not faster" in reason for reason in measured.reasons.values())
    assert all(choice.speedup > 0 for choice in measured.choices)
    assert "x as fast" in str(measured)
    kept = keep_faster(report, apply, PARAMS, IMAGES, least=1e-9, rounds=2)
    assert kept.ranks == report.ranks
    with pytest.raises(ValueError, match="least must be above 0"):
        keep_faster(report, apply, PARAMS, IMAGES, least=0)


def test_a_large_layer_is_measured_faster() -> None:
    params = {"w": jnp.asarray(RNG.normal(size=(1024, 2048)), jnp.float32)}
    report = choose_ranks(params, Fraction(fraction=1 / 64))
    measured = keep_faster(report, lambda p, x: x @ p["w"], params, jnp.ones((64, 1024)), rounds=5)
    assert measured.ranks == {"w": 16}
    assert measured.choices[0].speedup >= 1


def test_only_what_can_be_taken_out_is_measured() -> None:
    def scanned(params: dict, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (h @ w, None), x, params["layers"])[0] @ params["out"]

    params = {"layers": jnp.ones((3, 4, 4)), "out": jnp.ones((4, 5))}
    factors = {path: Svd().factorize(leaf, 1) for path, leaf in params.items()}
    assert set(layer_times(scanned, params, factors, jnp.ones((2, 4)), rounds=1)) == {"out"}


def test_macs_of_the_dense_layers() -> None:
    assert dense_macs(apply, PARAMS, IMAGES) == {"conv": 2 * 36 * 288, "head": 2 * 80, "bias": 0}
