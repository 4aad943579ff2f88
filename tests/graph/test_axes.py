"""Labels of axes: hand-made cases, one for every rule that a wrong plan could come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.graph.axes import FIXED, analyse_traced
from lepton_jax.graph.axes.reshape import blocks
from lepton_jax.graph.trace import trace


def classes(apply, shapes, *inputs):
    """{name: class of every index of every axis}, and the analysis, for variables of the given shapes."""
    variables = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    traced = trace(apply, variables, *inputs)
    count, labels = 1, []
    for path in traced.variables:
        axes = []
        for n in shapes[path]:
            axes.append(np.arange(count, count + n))
            count += n
        labels.append(tuple(axes))
    analysis = analyse_traced(traced, labels)
    axes_of = dict(zip(traced.variables, (value.atoms for value in analysis.inputs)))
    found = {path: [analysis.classes[a] for a in axes] for path, axes in axes_of.items()}
    reasons = {path: [analysis.reasons(a) for a in axes] for path, axes in axes_of.items()}
    return found, analysis, reasons


def free(found):
    return bool((found != FIXED).all() and len(np.unique(found)) == len(found))


X = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def test_contraction_couples_outputs_of_one_with_inputs_of_the_next():
    found, _, reasons = classes(lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": (3, 4), "b": (4, 5)}, X)
    assert free(found["a"][1])
    np.testing.assert_array_equal(found["a"][1], found["b"][0])
    assert not found["a"][0].any()
    assert not found["b"][1].any()
    assert reasons["b"][1] == ("an output",)


def test_axes_of_length_one_are_broadcast_and_say_nothing():
    found, _, _ = classes(
        lambda v, x: (x @ v["a"] + v["one"]) * v["scale"] @ v["b"],
        {"a": (3, 4), "one": (1, 1), "scale": (1, 4), "b": (4, 5)},
        X,
    )
    assert free(found["a"][1])
    np.testing.assert_array_equal(found["a"][1], found["scale"][1])
    assert not found["one"][1].any()


def test_a_sum_over_channels_that_are_not_zero_nor_alike_when_masked_fixes_them():
    shapes = {"a": (3, 4), "b": (4, 5)}
    found, _, _ = classes(lambda v, x: (x @ v["a"]).sum(axis=1, keepdims=True) @ jnp.ones((1, 4)) @ v["b"], shapes, X)
    assert free(found["a"][1])

    def exponential(v, x, shift):
        h = jnp.exp(x @ v["a"] + shift)
        return h @ v["b"] / jnp.sum(h, axis=1, keepdims=True)

    found, _, _ = classes(lambda v, x: exponential(v, x, 0.5), shapes, X)
    assert free(found["a"][1])
    found, _, reasons = classes(lambda v, x: exponential(v, x, jnp.array([[0.0, 1.0, 2.0, 3.0]])), shapes, X)
    assert not found["a"][1].any()
    assert any("reduce_sum" in why for why in reasons["a"][1])


def test_variance_by_deviations_as_by_squares_leaves_channels_free():
    def normed(v, x, deviations):
        h = x @ v["a"]
        mean = h.mean(axis=1, keepdims=True)
        variance = ((h - mean) ** 2 if deviations else h**2).mean(axis=1, keepdims=True)
        return (h - mean) / jnp.sqrt(variance + 1e-5) * v["scale"][None] @ v["b"]

    shapes = {"a": (3, 4), "scale": (4,), "b": (4, 5)}
    for deviations in (True, False):
        found, _, _ = classes(lambda v, x, deviations=deviations: normed(v, x, deviations), shapes, X)
        assert free(found["a"][1])
        np.testing.assert_array_equal(found["a"][1], found["scale"][0])


def test_division_by_a_channel_that_is_zero_when_masked_fixes_it():
    found, _, reasons = classes(
        lambda v, x: x @ (v["a"] / jnp.sqrt(jnp.sum(v["a"] ** 2, axis=0, keepdims=True))) @ v["b"],
        {"a": (3, 4), "b": (4, 5)},
        X,
    )
    assert not found["a"][1].any()
    assert any("0 when masked" in why for why in reasons["a"][1])


def test_flattening_keeps_the_channel_and_not_the_pixels():
    def apply(v, x):
        h = lax.conv_general_dilated(x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return h.reshape(2, -1) @ v["d"]

    image = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    found, _, _ = classes(apply, {"k": (3, 3, 3, 5), "d": (80, 2)}, image)
    assert free(found["k"][3])
    np.testing.assert_array_equal(found["d"][0], np.tile(found["k"][3], 16))


def test_fused_projection_goes_by_heads():
    def apply(v, x):
        qkv = (x @ v["w"]).reshape(2, 3, 2, 4)
        q, k, val = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        score = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k))
        return jnp.einsum("hbc,chd->bhd", score, val).reshape(2, 8) @ v["o"]

    found, _, _ = classes(apply, {"w": (3, 24), "o": (8, 3)}, X)
    heads = found["w"][1].reshape(3, 2, 4)
    assert len(np.unique(heads)) == 2
    assert (heads == heads[:1, :, :1]).all()
    np.testing.assert_array_equal(found["o"][0].reshape(2, 4), heads[0])


def test_heads_folded_into_the_batch_stay_whole():
    def apply(v, x):
        q, val = ((x @ v[name]).reshape(2, 5, 4, 3).swapaxes(1, 2).reshape(8, 5, 3) for name in ("q", "v"))
        out = jax.nn.softmax(q @ q.swapaxes(1, 2)) @ val
        return out.reshape(2, 4, 5, 3).swapaxes(1, 2).reshape(2, 5, 12) @ v["o"]

    shapes = {"q": (3, 12), "v": (3, 12), "o": (12, 3)}
    found, _, _ = classes(apply, shapes, jax.ShapeDtypeStruct((2, 5, 3), jnp.float32))
    for labels in (found["q"][1], found["v"][1], found["o"][0]):
        np.testing.assert_array_equal(labels, np.repeat(labels[::3], 3))
        assert free(labels[::3])


def test_a_grouped_convolution_loses_whole_groups():
    def apply(v, x):
        h = lax.conv_general_dilated(x, v["a"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        h = lax.conv_general_dilated(h, v["g"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2)
        return h.sum(axis=1) @ v["d"]

    found, _, _ = classes(apply, {"a": (3, 3, 4), "g": (3, 2, 6), "d": (6, 2)}, jax.ShapeDtypeStruct((2, 5, 3), jnp.float32))
    one, two = found["a"][2][0], found["a"][2][2]
    assert one != two
    assert FIXED not in (one, two)
    np.testing.assert_array_equal(found["a"][2], [one, one, two, two])
    np.testing.assert_array_equal(found["g"][2], [one] * 3 + [two] * 3)
    assert not found["g"][1].any()


def test_batch_groups_are_fixed():
    def apply(v, x):
        h = lax.conv_general_dilated(x, v["a"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), batch_group_count=2)
        return h.sum(axis=1) @ v["d"]

    shapes = {"a": (3, 3, 4), "d": (4, 2)}
    found, _, reasons = classes(apply, shapes, jax.ShapeDtypeStruct((2, 5, 3), jnp.float32))
    assert not found["a"][2].any()
    assert any("batch_group_count" in why for why in reasons["a"][2])


def test_padding_makes_channels_that_only_the_other_branch_has():
    def apply(v, x):
        short = jnp.pad(x @ v["a"], ((0, 0), (1, 2)))
        return (short + x @ v["b"]) @ v["c"]

    found, _, _ = classes(apply, {"a": (3, 4), "b": (3, 7), "c": (7, 2)}, X)
    assert free(found["b"][1])
    np.testing.assert_array_equal(found["b"][1][1:5], found["a"][1])


@pytest.mark.parametrize("what", ["max", "sort", "argmax", "cumsum", "top_k", "unknown", "gather"])
def test_operations_that_see_positions_fix(what):
    def apply(v, x):
        h = x @ v["a"]
        if what == "max":
            h = h - jnp.max(h, axis=1, keepdims=True)
        elif what == "sort":
            h = jnp.sort(h, axis=1)
        elif what == "argmax":
            h = h * jnp.argmax(h, axis=1).astype(jnp.float32)[:, None]
        elif what == "cumsum":
            h = jnp.cumsum(h, axis=1)
        elif what == "top_k":
            h = h + lax.top_k(h, 2)[0].sum(axis=1, keepdims=True)
        elif what == "unknown":
            h = lax.linalg.triangular_solve(jnp.eye(len(h)), h, left_side=True)
        else:
            h = h[:, jnp.array([3, 1, 2, 0])]
        return h @ v["b"]

    found, analysis, reasons = classes(apply, {"a": (3, 4), "b": (4, 2)}, X)
    assert not found["a"][1].any()
    assert reasons["a"][1]
    assert analysis.unknown == (("triangular_solve",) if what == "unknown" else ())


@pytest.mark.parametrize("width", ["narrower", "wider", "same"])
def test_bits_read_in_another_width_fix_their_axes(width):
    def apply(v, x):
        h = x @ v["a"]
        if width == "narrower":  # (2, 4) becomes (2, 4, 4): a scatter of each number over bytes
            bits = lax.bitcast_convert_type(h, jnp.uint8)
            h = bits.sum(axis=2).astype(jnp.float32)
        elif width == "wider":  # (2, 4) becomes (2,)
            wide = lax.bitcast_convert_type(h.astype(jnp.bfloat16).reshape(2, 2, 2), jnp.float32)
            h = jnp.concatenate([wide, wide], axis=1)
        else:
            h = lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.uint32), jnp.float32)
        return h @ v["b"]

    found, analysis, reasons = classes(apply, {"a": (3, 4), "b": (4, 2)}, X)
    assert not analysis.unknown
    assert free(found["a"][1]) == (width == "same")
    if width != "same":
        assert "bits that are read in another width" in reasons["a"][1][0]


def test_one_hot_codes_fix_the_table():
    def apply(v, x):
        return jax.nn.one_hot(jnp.argmax(x, axis=1), 5) @ v["table"] @ v["b"]

    found, _, reasons = classes(apply, {"table": (5, 4), "b": (4, 2)}, X)
    assert not found["table"][0].any()
    assert any("positions" in why for why in reasons["table"][0])
    assert free(found["table"][1])


def test_updated_state_keeps_its_channels_removable():
    def apply(v, x):
        h = x @ v["layer/a"]
        return h @ v["layer/b"], {"layer/mean": 0.9 * v["layer/mean"] + 0.1 * h.mean(axis=0)}

    shapes = {"layer/a": (3, 4), "layer/b": (4, 2), "layer/mean": (4,)}
    found, _, _ = classes(apply, shapes, X)
    assert free(found["layer/a"][1])
    np.testing.assert_array_equal(found["layer/a"][1], found["layer/mean"][0])
    renamed, _, _ = classes(lambda v, x: (apply(v, x)[0], {"other": apply(v, x)[1]["layer/mean"]}), shapes, X)
    assert not renamed["layer/a"][1].any()


def test_two_calls_of_one_function_are_told_apart():
    inner = jax.jit(lambda x, w: jnp.tanh(x @ w))

    def apply(v, x):
        return inner(inner(x, v["a"]), v["b"]) @ v["c"]

    found, _, _ = classes(apply, {"a": (3, 3), "b": (3, 3), "c": (3, 2)}, X)
    assert free(found["a"][1])
    assert free(found["b"][1])
    assert not np.isin(found["a"][1], found["b"][1]).any()
    assert not found["a"][0].any()


def test_loops_couple_the_carry_with_itself():
    def apply(v, x):
        def step(h, slice_):
            return jnp.tanh(h @ v["w"] + slice_ @ v["i"]), h

        h, hs = lax.scan(step, jnp.zeros((2, 4)), jnp.stack([x, x]))
        h = lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ v["w"]), h)
        h = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, 2 * s[1]), (0, h))[1]
        h = lax.cond(x[0, 0] > 0, lambda h: h, lambda h: jnp.tanh(h), h)
        return (h + hs.sum(axis=0)) @ v["o"]

    found, _, _ = classes(apply, {"w": (4, 4), "i": (3, 4), "o": (4, 2)}, X)
    assert free(found["w"][0])
    for other in (found["w"][1], found["i"][1], found["o"][0]):
        np.testing.assert_array_equal(found["w"][0], other)


def test_a_carry_that_starts_at_one_is_not_zero():
    def apply(v, x):
        h, _ = lax.scan(lambda h, _: (h * 0.5 + x @ v["i"], None), jnp.ones((2, 4)), None, length=3)
        return h @ v["o"] + h.sum(axis=1, keepdims=True)

    found, _, reasons = classes(apply, {"i": (3, 4), "o": (4, 2)}, X)
    assert not found["i"][1].any()
    assert any("reduce_sum" in why for why in reasons["i"][1])


def test_blocks_of_a_reshape():
    assert list(blocks((4, 6), (8, 3))) == [((0, 1), (0, 1))]
    assert list(blocks((1, 2, 3), (3, 2))) == [((1, 2), (0, 1))]
    assert list(blocks((5, 1), (5,))) == [((0,), (0,))]


def test_of_a_sum_over_axes_that_are_not_zero_the_longest_may_lose_indices():
    """cosh(p q) is 1 where either is masked: how many ones there are is known for one axis, not for both at once."""

    def apply(v, x):
        return x * jnp.cosh(v["p"] * v["q"]).sum() * v["q"].sum()

    found, _, reasons = classes(apply, {"p": (7, 1), "q": (1, 5)}, X)
    assert free(found["p"][0])
    assert not found["q"][1].any()
    assert reasons["q"][1] == ("reduce_sum over channels that are not 0 when masked",)


def test_what_is_the_same_in_all_silent_channels_can_be_summed_but_not_a_position():
    def apply(v, x):
        h = x @ v["a"]
        centred = h - h.mean(-1, keepdims=True)
        there = (centred + jnp.arange(4.0)[None]) if "order" in v else centred
        return centred / jnp.square(there).sum(-1, keepdims=True) @ v["b"]

    shapes = {"a": (3, 4), "b": (4, 5)}
    found, _, _ = classes(apply, shapes, X)
    assert free(found["a"][1])
    found, _, _ = classes(apply, {**shapes, "order": (1,)}, X)
    assert not found["a"][1].any()
