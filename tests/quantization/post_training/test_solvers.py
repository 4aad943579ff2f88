"""One layer: GPTQ against float64, and each method against rounding to nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uniform_by_hand import codes_of

from lepton_jax.formats import MX
from lepton_jax.graph.layout import Layout
from lepton_jax.quantization import AdaRound, Gptq, Uniform, awq, dequantize, gptq, quantize
from lepton_jax.quantization.post_training import Matrix, low_rank_error
from lepton_jax.quantization.post_training.grid import Grid, search_grid


def case(seed: int, rows: int = 60, inputs: int = 12, outputs: int = 5) -> tuple[jax.Array, jax.Array]:
    """A weight, and correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs)) * np.exp(rng.normal(size=(1, inputs)))
    return jnp.asarray(rng.normal(size=(inputs, outputs)), jnp.float32), jnp.asarray(x, jnp.float32)


def output_error(x, w, new) -> float:
    return float(np.sum((np.asarray(x, np.float64) @ (np.asarray(new, np.float64) - np.asarray(w, np.float64))) ** 2))


def reference(w, x, scale, zero_point, fmt, *, order, damping):
    """GPTQ from its definition: the inverse of what is left, one input removed after the other, in float64."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    h = x.T @ x
    dead = np.diag(h) == 0
    mean = np.diag(h)[~dead].mean() if (~dead).any() else 1.0
    h[dead, dead] = mean
    inverse = np.linalg.inv(h + damping * mean * np.eye(len(h)))
    out, held = np.zeros(w.shape), w.copy()
    for i in order:
        q = codes_of(held[i], scale[i], zero_point[i], fmt)
        out[i] = q
        error = (held[i] - (q - zero_point[i]) * scale[i]) / inverse[i, i]
        held -= np.outer(inverse[:, i], error)
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return out


FORMATS = {
    "a channel": Uniform(3, channel_axis=-1),
    "a tensor, affine": Uniform(4, symmetric=False),
    "groups, the last one shorter": Uniform(3, group_size=5),
    "affine groups": Uniform(3, symmetric=False, group_size=4),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_against_float64(name, ordered):
    fmt = FORMATS[name]
    for seed, block in ((0, 128), (1, 5)):
        w, x = case(seed)
        q = gptq(w, x, fmt, activation_order=ordered, block_size=block, damping=0.01)
        plain = quantize(w, fmt)
        np.testing.assert_array_equal(q.scale, plain.scale)
        each = [np.asarray(part, np.float64) for part in (plain.scale, plain.zero_point)]
        if fmt.group_size:
            each = [np.repeat(part, fmt.group_size, 0)[:12] if part.size > 1 else part for part in each]
        scale, zero = (np.broadcast_to(part, w.shape) for part in each)
        h = np.diag(np.asarray(x, np.float64).T @ np.asarray(x, np.float64))
        order = np.argsort(-h, kind="stable") if ordered else np.arange(12)
        expected = reference(w, x, scale, zero, fmt, order=order, damping=0.01)
        np.testing.assert_array_equal(q.qvalue, expected)
        assert (q.shape, q.dtype, q.format) == (w.shape, w.dtype, fmt)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_few_rows_are_not_followed_further_than_they_carry(method, seed):
    """On other rows of the same kind, outputs are nearer than by rounding to nearest, and than with no word of the rows."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(96), np.arange(96))))
    few, many = (jnp.asarray(rng.normal(size=(rows, 96)) @ mix.T, jnp.float32) for rows in (40, 3000))
    w, fmt = jnp.asarray(rng.normal(size=(96, 24)), jnp.float32), Uniform(3, channel_axis=-1)
    plain = quantize(w, fmt)
    grid = Grid(jnp.broadcast_to(plain.scale, w.shape), jnp.zeros(w.shape, jnp.int32))

    def error(rows):
        solve = Gptq() if method == "gptq" else AdaRound(steps=200)
        levels, damping = solve(Matrix(w, few.T @ few, grid, rows), fmt)
        return output_error(many, w, levels), float(damping)

    (known, damping), (unknown, least) = error(jnp.int32(40)), error(None)
    assert known < 0.95 * min(output_error(many, w, plain.unpack()), unknown)
    assert damping > 0.1 > least
    if method == "gptq":
        np.testing.assert_array_equal(gptq(w, few, fmt).unpack(), Gptq()(Matrix(w, few.T @ few, grid, jnp.int32(40)), fmt)[0])


@pytest.mark.parametrize("seed", range(4))
def test_gptq_is_better_on_outputs_and_worse_on_weights(seed):
    w, x = case(seed)
    fmt = Uniform(3, channel_axis=-1)
    nearest, found = dequantize(quantize(w, fmt)), dequantize(gptq(w, x, fmt))
    assert output_error(x, w, found) < 0.9 * output_error(x, w, nearest)
    assert float(jnp.sum((found - w) ** 2)) > float(jnp.sum((nearest - w) ** 2))
    searched = dequantize(gptq(w, x, fmt, factors=(1.0, 0.9, 0.8, 0.7), activation_order=True))
    assert output_error(x, w, searched) < output_error(x, w, nearest)


def test_gptq_of_a_format_without_even_levels():
    w, x = case(7)
    fmt = MX(element="float4_e2m1fn", group_size=4)
    assert output_error(x, w, gptq(w, x, fmt).unpack()) < output_error(x, w, quantize(w, fmt).unpack())


def test_inputs_that_are_always_zero():
    w, x = case(3)
    fmt = Uniform(3, channel_axis=-1)
    nothing = gptq(w, jnp.zeros_like(x), fmt)
    np.testing.assert_array_equal(nothing.qvalue, quantize(w, fmt).qvalue)
    dead = gptq(w, x.at[:, 4].set(0), fmt)
    np.testing.assert_array_equal(dead.qvalue[4], quantize(w, fmt).qvalue[4])
    others = jnp.array([i for i in range(12) if i != 4])
    small = gptq(w[others], x[:, others], Uniform(3, channel_axis=-1))
    same = np.asarray(small.scale[0] == dead.scale[0])  # outputs whose largest weight is not the dead one
    assert same.any()
    np.testing.assert_array_equal(np.asarray(dead.qvalue)[others][:, same], np.asarray(small.qvalue)[:, same])


def test_singular_and_indefinite_hessians():
    w, x = case(4, rows=3)  # 12 inputs, rank 3
    fmt = Uniform(3, channel_axis=-1)
    found = gptq(w, x, fmt)
    assert output_error(x, w, found.unpack()) < output_error(x, w, quantize(w, fmt).unpack())
    hessian = jnp.ones((12, 12)) - 1e-3 * jnp.eye(12)
    grid = Grid(jnp.full(w.shape, 0.5), jnp.zeros(w.shape, jnp.int32))
    levels, damping = Gptq(damping=1e-5)(Matrix(w, hessian, grid), fmt)
    assert bool(jnp.isfinite(levels).all())
    assert float(damping) == pytest.approx(1e-2, rel=1e-3)  # 1e-5, 1e-4 and 1e-3 were not enough


def test_bad_input_of_gptq():
    w, x = case(5)
    with pytest.raises(ValueError, match=r"w must be \(inputs, outputs\) and hessian_inputs .*; got \(12, 5\) and \(60, 11\)"):
        gptq(w, x[:, :11], Uniform(4))
    with pytest.raises(ValueError, match="weights and inputs must be finite"):
        gptq(w, x.at[0, 0].set(jnp.nan), Uniform(4))
    with pytest.raises(ValueError, match="group_size=16 is larger than axis 0"):
        gptq(w, x, Uniform(4, group_size=16))
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        Gptq(damping=-1.0)
    with pytest.raises(ValueError, match=r"w must be .* \(12, 5\) and \(60, 11\)"):
        awq(w, x[:, :11], Uniform(4))


@pytest.mark.parametrize("seed", range(3))
def test_adaround(seed):
    """Better than nearest on outputs; every weight goes to one of its two neighbours."""
    w, x = case(seed)
    fmt = Uniform(3, channel_axis=-1)
    plain = quantize(w, fmt)
    grid = Grid(jnp.broadcast_to(plain.scale, w.shape), jnp.zeros(w.shape, jnp.int32))
    levels, damping = AdaRound(steps=400)(Matrix(w, x.T @ x, grid), fmt)
    assert output_error(x, w, levels) < 0.7 * output_error(x, w, plain.unpack())
    assert bool((jnp.abs(levels - w) < plain.scale * (1 + 1e-5)).all())
    np.testing.assert_allclose(levels / plain.scale, jnp.round(levels / plain.scale), atol=1e-5)
    assert (float(damping), levels.dtype) == (0.0, jnp.float32)


def test_adaround_finds_the_best_of_all_roundings():
    w, x = case(11, inputs=4, outputs=1)
    fmt = Uniform(2, symmetric=False)
    plain = quantize(w, fmt)
    scale, zero = float(plain.scale[0, 0]), int(plain.zero_point[0, 0])
    below = np.floor(np.asarray(w, np.float64) / scale + zero)
    ups = np.stack(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1)
    every = [(np.clip(below + up[:, None], *fmt.q_range) - zero) * scale for up in ups.T]
    grid = Grid(jnp.full(w.shape, scale), jnp.full(w.shape, zero))
    levels, _ = AdaRound(steps=400)(Matrix(w, x.T @ x, grid), fmt)
    assert output_error(x, w, levels) <= 1.001 * min(output_error(x, w, one) for one in every)


def test_bad_input_of_adaround():
    w, x = case(0)
    with pytest.raises(ValueError, match="needs evenly spaced levels"):
        AdaRound()(Matrix(w, x.T @ x, Grid(jnp.ones(w.shape), jnp.zeros(w.shape))), MX(element="float4_e2m1fn", group_size=4))
    with pytest.raises(ValueError, match="warm_up in"):
        AdaRound(warm_up=1.0)


@pytest.mark.parametrize("seed", range(4))
def test_awq_is_better_than_nearest_where_some_inputs_are_large(seed):
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(50, 16)) * np.where(np.arange(16) < 2, 20, 1), jnp.float32)
    fmt, narrow = Uniform(4, group_size=8), Uniform(4, group_size=8, narrow_range=True)
    q, s = awq(w, x, fmt)
    assert q.format == fmt
    assert output_error(x, w, q.unpack() / s[:, None]) < 0.8 * output_error(x, w, quantize(w, fmt).unpack())
    assert float(s[0]) > float(s[5])
    # The full range has the narrow one's levels, and is no worse.
    inside, t = awq(w, x, narrow)
    assert output_error(x, w, q.unpack() / s[:, None]) <= output_error(x, w, inside.unpack() / t[:, None]) * 1.0001
    # Inputs of one size leave nothing to gain, and nothing is lost.
    q, s = awq(w, jnp.eye(16), narrow)
    np.testing.assert_array_equal(q.unpack() / s[:, None], quantize(w, narrow).unpack())
    q, s = awq(w, jnp.eye(16), fmt)
    assert (
        output_error(jnp.eye(16), w, q.unpack() / s[:, None])
        <= output_error(jnp.eye(16), w, quantize(w, fmt).unpack()) * 1.0001
    )


def test_the_range_with_the_least_output_error():
    """Of each output, against a search by hand in float64."""
    w, x = case(9)
    fmt = Uniform(2, channel_axis=-1)
    layout = Layout(shape=w.shape, index=np.arange(60).reshape(12, 5))
    factors = (1.0, 0.8, 0.6, 0.4)
    grid = search_grid(w, x.T @ x, layout, fmt, factors=factors)
    for output in range(5):
        column = np.asarray(w, np.float64)[:, output]
        scales = [np.abs(column).max() * factor / 1.5 for factor in factors]
        errors = [output_error(x, column[:, None], (np.clip(np.round(column / s), -2, 1) * s)[:, None]) for s in scales]
        np.testing.assert_allclose(grid.scale[0, output], scales[int(np.argmin(errors))], rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_error_is_the_best_of_its_rank(rank):
    """The error left is that of the singular values that are cut, of the whitened difference, in float64."""
    difference, x = case(2)
    u, v = low_rank_error(difference, x.T @ x, rank, damping=1e-6)
    left = output_error(x, difference, u @ v)
    h = np.asarray(x, np.float64).T @ np.asarray(x, np.float64)
    values = np.linalg.svd(np.linalg.cholesky(h).T @ np.asarray(difference, np.float64), compute_uv=False)
    assert left == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-2)
    assert (u.shape, v.shape) == ((12, rank), (rank, 5))
    plain, _ = low_rank_error(difference, jnp.zeros((12, 12)), rank)
    assert bool(jnp.isfinite(plain).all())
