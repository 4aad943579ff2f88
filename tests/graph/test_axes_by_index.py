"""Labels through scatters, ragged dots, Fourier transforms and operations between devices: what passes, what is fixed, why."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from test_axes import X, classes, free

P = PartitionSpec
H = jnp.zeros((2, 5, 4))
WIDE = {"a": (3, 4), "b": (4, 5)}


@pytest.mark.parametrize("what", ["set", "add", "subtract", "multiply", "min", "max"])
def test_a_window_taken_whole_passes_what_is_written(what):
    """(2, 5, 4).at[:, 1].set((2, 4)): the channels go on, of what is written and of what it is written into."""

    def apply(v, x):
        h = jnp.broadcast_to((x @ v["a"])[:, None], (2, 5, 4))
        return getattr(h.at[:, 1], what)(x @ v["a2"]) @ v["b"]

    found, analysis, _ = classes(apply, {**WIDE, "a2": (3, 4)}, X)
    assert not analysis.unknown
    assert free(found["b"][0])
    np.testing.assert_array_equal(found["a"][1], found["b"][0])
    np.testing.assert_array_equal(found["a2"][1], found["b"][0])


def test_written_in_part_or_by_index_is_fixed():
    cases = {
        "part": lambda v, x: jnp.zeros((2, 6)).at[:, 1:5].set(x @ v["a"])[:, 1:5] @ v["b"],
        "index": lambda v, x: H[:, 0].at[:, jnp.array([3, 1, 0, 2])].set(x @ v["a"]) @ v["b"],
        "rows": lambda v, x: jax.ops.segment_sum(v["a"].T @ x.T, jnp.array([0, 1, 1, 0]), num_segments=4).T @ v["b"],
    }
    for apply in cases.values():
        found, analysis, reasons = classes(apply, WIDE, X)
        assert not analysis.unknown
        assert not found["a"][1].any()
        assert any("scatter" in reason or "slice" in reason or "gather" in reason for reason in reasons["a"][1])


def test_what_is_not_zero_where_it_is_written_is_not_zero_after():
    """exp of a masked channel is 1: a sum over the channels of the written array would change."""

    def apply(v, x):
        h = H[:, 0:1].at[:, 0].set(jnp.cosh(x @ v["a"]))
        return h.max(axis=1).sum(axis=1, keepdims=True) * (x @ v["a"] @ v["b"]).sum()

    found, _, _ = classes(apply, WIDE, X)
    assert not found["a"][1].any()


def test_ragged_dots_fix_groups_and_rows():
    shapes = {"in": (3, 4), "w": (2, 4, 6), "out": (6, 5)}
    found, analysis, reasons = classes(
        lambda v, x: lax.ragged_dot(x @ v["in"], v["w"], jnp.array([1, 1])) @ v["out"], shapes, X
    )
    assert not analysis.unknown
    assert not found["w"][0].any()
    assert reasons["w"][0] == ("the groups of ragged_dot_general",)
    for one, other in ((found["in"][1], found["w"][1]), (found["w"][2], found["out"][0])):
        assert free(one)
        np.testing.assert_array_equal(one, other)


def test_a_transform_along_channels_fixes_them_along_others_it_does_not():
    def apply(axis, v, x):
        h = jnp.broadcast_to((x @ v["a"])[:, None], (2, 5, 4))
        return jnp.real(jnp.fft.fft(h, axis=axis)) @ v["b"]

    fixed, _, reasons = classes(partial(apply, 2), WIDE, X)
    passed, analysis, _ = classes(partial(apply, 1), WIDE, X)
    assert not analysis.unknown
    assert not fixed["a"][1].any()
    assert reasons["a"][1] == ("fft",)
    assert free(passed["a"][1])


def split(body, spec, **specs):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    given = {"a": P(), "b": P(), **specs}
    return jax.shard_map(body, mesh=mesh, in_specs=(given, spec), out_specs=spec, check_vma=False)


def test_every_device_loses_the_same_channels_of_its_part():
    def body(v, x):
        return lax.psum(jnp.tanh(x @ v["a"]) @ v["b"], "model")

    found, analysis, _ = classes(split(body, P("data"), a=P(None, "model"), b=P("model")), WIDE, X)
    assert not analysis.unknown
    np.testing.assert_array_equal(found["a"][1][:2], found["a"][1][2:])
    np.testing.assert_array_equal(found["a"][1], found["b"][0])
    assert free(found["a"][1][:2])


def test_a_part_of_one_channel_cannot_lose_it():
    def body(v, x):
        return lax.psum(jnp.tanh(x @ v["a"]) @ v["b"], ("data", "model"))

    spec = P(("data", "model"))
    found, _, reasons = classes(split(body, P(), a=P(None, *spec), b=spec), WIDE, X)
    assert not found["a"][1].any()
    assert "a sharded axis of which a device has one index" in reasons["a"][1]


@pytest.mark.parametrize("what", ["pmax", "ppermute", "all_gather", "all_to_all", "psum_scatter"])
def test_between_devices(what):
    def body(v, x):
        h = jnp.tanh(x @ v["a"])
        if what == "pmax":
            h = lax.pmax(h, "model")
        elif what == "ppermute":
            h = lax.ppermute(h, "data", [(0, 1), (1, 0)])
        elif what == "all_gather":
            h = lax.all_gather(h, "model").sum(0)
        elif what == "all_to_all":
            h = lax.all_to_all(lax.all_to_all(h, "model", 1, 0, tiled=True), "model", 0, 1, tiled=True)
        else:
            h = lax.all_gather(lax.psum_scatter(h, "model", scatter_dimension=1, tiled=True), "model", axis=1, tiled=True)
        return h @ v["b"]

    found, analysis, reasons = classes(split(body, P("data")), WIDE, X)
    assert not analysis.unknown
    np.testing.assert_array_equal(found["a"][1], found["b"][0])
    if what == "all_to_all":
        assert not found["a"][1].any()
        assert reasons["a"][1] == ("all_to_all",)
    elif what == "psum_scatter":
        np.testing.assert_array_equal(found["a"][1][:2], found["a"][1][2:])
        assert free(found["a"][1][:2])
    else:
        assert free(found["a"][1])


def test_sums_over_an_axis_that_vmap_names():
    def apply(v, x):
        return jax.vmap(lambda row: jnp.tanh(row @ v["a"] - lax.pmean(row @ v["a"], "n")) @ v["b"], axis_name="n")(x)

    found, analysis, _ = classes(apply, WIDE, X)
    assert not analysis.unknown
    assert free(found["a"][1])

    def over_channels(v, x):
        return jax.vmap(lambda w: lax.psum(jnp.cosh(x @ w), "n"), in_axes=1, axis_name="n")(v["a"])

    found, _, reasons = classes(over_channels, {"a": (3, 4)}, X)
    assert not found["a"][1].any()
    assert any("psum" in reason for reason in reasons["a"][1])
