"""Fake quantization as a transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Transform, cast, chain, fake_quant, low_rank, pack, prune, unpack
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.quantization import Codebook, QArray, Uniform, dequantize, quantize

PARAMS = {
    "a": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32), "bias": jnp.ones(5)},
    "b": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)},
}


def bits_of(x: jax.Array) -> bytes:
    return np.asarray(x).tobytes()


def test_the_view_is_dequantize_of_quantize() -> None:
    transform = fake_quant(bits=3, channel_axis=-1)
    params, state = transform.init(PARAMS)
    seen = transform.view(params, state)
    expected = dequantize(quantize(PARAMS["a"]["kernel"], Uniform(bits=3, channel_axis=-1)))
    assert bits_of(seen["a"]["kernel"]) == bits_of(expected)
    assert seen["a"]["bias"] is PARAMS["a"]["bias"]


def test_the_gradient_goes_straight_through() -> None:
    transform = fake_quant(bits=2)
    slope = jnp.arange(30.0).reshape(6, 5)
    grads = jax.grad(lambda p: jnp.sum(slope * transform.view(p, ())["a"]["kernel"]))(PARAMS)
    assert grads["a"]["kernel"].tolist() == slope.tolist()
    assert not np.any(grads["b"]["kernel"])


def test_format_and_arguments_are_two_ways_to_say_the_same() -> None:
    one, two = fake_quant(Uniform(bits=5, symmetric=False, channel_axis="out")), fake_quant(bits=5, symmetric=False)
    assert bits_of(one.view(PARAMS, ())["b"]["kernel"]) == bits_of(two.view(PARAMS, ())["b"]["kernel"])


@pytest.mark.parametrize(
    ("transforms", "kind"),
    [
        ((fake_quant(bits=8), fake_quant(bits=3)), QArray),
        ((fake_quant(Codebook(bits=3)), fake_quant(bits=3)), QArray),
        ((fake_quant(bits=4), cast("bfloat16")), QArray),
        ((cast("bfloat16"), fake_quant(bits=4)), QArray),
        ((fake_quant(bits=4), cast("bfloat16"), cast("float32")), jax.Array),
        ((low_rank(2), prune(0.5), fake_quant(bits=4)), LowRank),
        ((prune(0.5), fake_quant(Codebook(bits=2)), cast("bfloat16")), CodebookArray),
    ],
    ids=range(7),
)
def test_what_is_packed_is_what_was_seen(transforms: tuple[Transform, ...], kind: type) -> None:
    transform = chain(*transforms)
    params, state = transform.init(PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    packed = pack(transform, params, state)
    seen = jax.jit(transform.view)(params, state)
    for layer in "ab":
        assert isinstance(packed[layer]["kernel"], kind)
        back = unpack(packed)[layer]["kernel"]
        assert back.dtype == seen[layer]["kernel"].dtype
        assert bits_of(back) == bits_of(seen[layer]["kernel"])


def test_factors_are_packed_one_by_one() -> None:
    transform = chain(low_rank(2), fake_quant(bits=4))
    params, state = transform.init(PARAMS)
    leaf = pack(transform, params, state)["a"]["kernel"]
    assert isinstance(leaf.u, QArray)
    assert isinstance(leaf.v, QArray)
    assert (leaf.u.shape, leaf.v.shape, leaf.shape) == ((6, 2), (2, 5), (6, 5))


def test_a_view_without_a_packed_form_never_sees_codes() -> None:
    halve = Transform(
        init=lambda params: (params, ()),
        view=lambda params, state: jax.tree.map(lambda w: w / 2, params),
        update=lambda params, state, grads, step: (params, state),
    )
    transform = chain(fake_quant(bits=4), halve)
    params, state = transform.init(PARAMS)
    expected = fake_quant(bits=4).view(PARAMS, ())["a"]["kernel"] / 2
    assert bits_of(unpack(pack(transform, params, state))["a"]["kernel"]) == bits_of(expected)


def test_misuse() -> None:
    with pytest.raises(TypeError, match="give either a format or a uniform format's arguments"):
        fake_quant(Uniform(), bits=4)
    with pytest.raises(ValueError, match=r"format.*got 'int9'"):
        fake_quant("int9")
    with pytest.raises(TypeError, match="unexpected keyword argument 'bit'"):
        fake_quant(bit=4)
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8; got 12"):
        fake_quant(bits=12)
    with pytest.raises(ValueError, match=r"matches no floating leaf.*a/bias, a/kernel, b/kernel"):
        fake_quant(select="*/kernels").init(PARAMS)
    says = r"a/kernel: channel_axis=2 is out of range .* shape \(6, 5\); write -2 to 1(.|\n)*b/kernel"
    with pytest.raises(ValueError, match=says):
        fake_quant(channel_axis=2).init(PARAMS)


def test_bits_may_stand_first() -> None:
    short, long, other = (
        fake_quant(3, symmetric=False),
        fake_quant(Uniform(3, symmetric=False, channel_axis="out")),
        fake_quant(3),
    )
    views = [bits_of(transform.view(*transform.init(PARAMS))["a"]["kernel"]) for transform in (short, long, other)]
    assert views[0] == views[1] != views[2]
    with pytest.raises(TypeError, match="give either"):
        fake_quant(3, bits=4)


@pytest.mark.parametrize("bits", [4.0, "4", True, 0, 9])
def test_bits_are_a_whole_number(bits: object) -> None:
    for make in (Uniform, Codebook):
        with pytest.raises(ValueError, match=r"bits must be a whole number from \d to \d; got"):
            make(bits=bits)
