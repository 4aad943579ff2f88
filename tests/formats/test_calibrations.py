"""Calibrations against float64 references, at once and over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uniform_by_hand import rounded, scale_of

from lepton_jax.formats.ranges import histogram
from lepton_jax.quantization import Entropy, MinMax, MovingAverage, Mse, Percentile, Uniform, quantize

ALL = [MinMax(), MovingAverage(decay=0.5), Percentile(q=95), Mse(candidates=17), Entropy(bins=64, candidates=9)]


def heavy_tailed(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size=shape).astype(np.float32)


def over_batches(calibration: object, batches: list, axes: tuple, fmt: Uniform) -> tuple:
    state = calibration.init(tuple(1 if axis in axes else n for axis, n in enumerate(batches[0].shape)))
    observe = jax.jit(calibration.observe, static_argnums=2)
    for batch in batches:
        state = observe(state, jnp.asarray(batch, jnp.float32), axes)
    return calibration.range(state, fmt)


@pytest.mark.parametrize("axes", [(0, 1), (0,)])
def test_percentile_is_that_of_numpy(axes: tuple) -> None:
    x = heavy_tailed(0, 101, 3) - 0.2
    low, high = Percentile(q=97.5)(jnp.asarray(x), axes)
    np.testing.assert_array_equal(low, np.minimum(np.percentile(x, 2.5, axes, method="lower", keepdims=True), 0))
    np.testing.assert_array_equal(high, np.maximum(np.percentile(x, 97.5, axes, method="higher", keepdims=True), 0))
    # Over batches: an edge of a bin at most a bin beyond, and never beyond the extremes.
    streamed_low, streamed_high = over_batches(Percentile(q=97.5), [x[:40], x[40:41], x[41:]], axes, Uniform(8))
    width = 2.0 ** np.frexp(np.abs(x).max(axes, keepdims=True))[1] / 2048
    for streamed, exact, extreme in ((-streamed_low, -low, -x.min(axes)), (streamed_high, high, x.max(axes))):
        gap = np.asarray(streamed - exact)
        assert (gap >= 0).all()
        assert (gap <= width).all()
        assert (np.asarray(streamed).reshape(-1) <= extreme.reshape(-1)).all()


@pytest.mark.parametrize("fmt", [Uniform(3), Uniform(3, narrow_range=True), Uniform(4, False)], ids=str)
def test_mse_is_the_best_of_its_candidates(fmt: Uniform) -> None:
    x = heavy_tailed(1, 300).astype(np.float64)
    fractions, errors = np.linspace(1, 0.2, 17), []
    for fraction in fractions:
        low, high = fraction * min(x.min(), 0), fraction * max(x.max(), 0)
        errors.append(np.sum((x - rounded(x, fmt, low=low, high=high)) ** 2))
    best = fractions[int(np.argmin(errors))]
    assert best < 1
    low, high = Mse(candidates=17)(jnp.asarray(x, jnp.float32), (0,), fmt)
    np.testing.assert_allclose(np.concatenate([low, high]), best * np.array([x.min(), x.max()]), rtol=1e-6)
    # Middles of bins stand for the values: the candidate found has nearly the least error.
    _, streamed = over_batches(Mse(candidates=17), [x[:100], x[100:]], (0,), fmt)
    chosen = int(np.argmin(np.abs(fractions * x.max() - float(streamed[0]))))
    assert errors[chosen] <= 1.02 * min(errors)


def reference_divergence(x: np.ndarray, fraction: float, fmt: Uniform, bins: int) -> float:
    top = 2.0 ** np.frexp(np.abs(x).max())[1]
    counts, edges = np.histogram(x, 2 * bins, (-top, top))
    middles = np.clip((edges[1:] + edges[:-1]) / 2, min(x.min(), 0), max(x.max(), 0))
    low, high = fraction * min(x.min(), 0), fraction * max(x.max(), 0)
    scale = scale_of(low, high, fmt)
    inside = np.flatnonzero((middles >= low) & (middles <= high))
    p = np.zeros(2 * bins)
    p[inside] = counts[inside]
    p[inside[0]] += counts[: inside[0]].sum()
    p[inside[-1]] += counts[inside[-1] + 1 :].sum()
    codes, q = np.clip(np.round(middles / scale), *fmt.q_range), np.zeros(2 * bins)
    for code in np.unique(codes):
        filled = (codes == code) & (p > 0)
        inner = np.intersect1d(np.flatnonzero(codes == code), inside)
        if filled.any():
            q[filled] = counts[inner].sum() / filled.sum()
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-9))))


def test_entropy_has_the_least_divergence() -> None:
    fmt, calibration = Uniform(4), Entropy(bins=128, candidates=15, smallest=0.1)
    x = heavy_tailed(2, 4000)
    fractions = np.linspace(1, 0.1, 15, dtype=np.float32)
    divergences = [reference_divergence(x, float(fraction), fmt, 128) for fraction in fractions]
    best = fractions[int(np.argmin(divergences))]
    assert 0.1 < best < 1
    low, high = calibration(jnp.asarray(x), (0,), fmt)
    np.testing.assert_allclose(np.concatenate([low, high]), best * np.array([x.min(), x.max()]), rtol=1e-6)
    assert over_batches(calibration, [x[:1000], x[1000:]], (0,), fmt) == (low, high)


def test_moving_average_by_hand() -> None:
    batches = [np.float32([[1.0, -2.0]]), np.float32([[3.0, 0.0]]), np.float32([[-4.0, 8.0]])]
    low, high = over_batches(MovingAverage(decay=0.75), batches, (0, 1), Uniform(8))
    assert low.item() == 0.75 * (0.75 * -2.0 + 0.25 * 0.0) + 0.25 * -4.0
    assert high.item() == 0.75 * (0.75 * 1.0 + 0.25 * 3.0) + 0.25 * 8.0
    assert MovingAverage()(jnp.asarray(batches[2]), (0, 1))[1].item() == 8.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_histograms_do_not_depend_on_the_order_of_batches(order: tuple) -> None:
    x = heavy_tailed(3, 90, 2) * np.float32([1e-3, 50.0])
    x[30:60] *= 1e-3
    x[-1, 0] = 7.0
    whole = histogram.added(histogram.empty((1, 2), 32), jnp.asarray(x), (0,))
    parts = histogram.empty((1, 2), 32)
    for index in order:
        parts = histogram.added(parts, jnp.asarray(x[30 * index : 30 * index + 30]), (0,))
    for a, b in zip(parts, whole):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for column in range(2):
        top = 2.0 ** int(whole.exponent[0, column])
        expected, _ = np.histogram(x[:, column].astype(np.float64), 64, (-top, top))
        np.testing.assert_array_equal(whole.counts[0, column], expected)


@pytest.mark.parametrize("calibration", ALL, ids=lambda c: type(c).__name__)
def test_degenerate_values(calibration: object) -> None:
    fmt = Uniform(4)
    for x, expected in (
        (np.zeros((2, 2)), (0.0, 0.0)),
        (np.full((2, 2), 2.5), (0.0, 2.5)),
        (np.full((2, 2), -0.5), (-0.5, 0.0)),
        (np.array([[np.nan, 4.0], [0.0, np.nan]]), (0.0, 4.0)),
    ):
        for low, high in (
            calibration(jnp.asarray(x, jnp.float32), (0, 1), fmt),
            over_batches(calibration, [x], (0, 1), fmt),
        ):
            assert (low.shape, high.shape, low.dtype, high.dtype) == ((1, 1), (1, 1), jnp.float32, jnp.float32)
            assert expected[0] <= low.item() <= 0 <= high.item() <= expected[1]
            if not np.isnan(x).any() and len(np.unique(x)) == 1:
                # One value: whatever is clipped, it has a level near itself; at the end of 7.5 steps 7 or 8 of them.
                scale, zero = fmt.scale_and_zero_point(low, high)
                shown = fmt.from_codes(fmt.to_codes(jnp.asarray(x, jnp.float32), scale, zero), scale, zero)
                np.testing.assert_allclose(shown, x, rtol=0.5 / 7.5 + 0.01)
    assert [bound.item() for bound in calibration.range(calibration.init((1,)), fmt)] == [0.0, 0.0]


@pytest.mark.parametrize("calibration", ALL, ids=lambda c: type(c).__name__)
def test_weights_in_groups_and_channels(calibration: object) -> None:
    x = jnp.asarray(heavy_tailed(4, 6, 3))
    grouped = quantize(x, Uniform(4, group_size=4, group_axis=0), calibration)
    assert grouped.scale.shape == (2, 3)
    for rows, scale in ((slice(0, 4), 0), (slice(4, 6), 1)):
        own = quantize(x[rows], Uniform(4, channel_axis=1), calibration)
        np.testing.assert_allclose(grouped.scale[scale], own.scale[0], rtol=1e-6)


def test_settings_out_of_range() -> None:
    for make, message in (
        (lambda: MovingAverage(decay=1.0), r"decay must be in \[0, 1\); got 1.0"),
        (lambda: Percentile(q=50), "q must be above 50 and up to 100, in percent; got 50"),
        (lambda: Percentile(bins=8), "bins must be a whole number from 16"),
        (lambda: Mse(candidates=1), "candidates must be a whole number from 2 up; got 1"),
        (lambda: Mse(smallest=1.0), r"smallest must be in \(0, 1\)"),
        (lambda: Entropy(smallest=0.0), r"smallest must be in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for calibration in (Mse(), Entropy()):
        with pytest.raises(TypeError, match="ranges by rounding errors need the number format"):
            calibration(jnp.ones(3), (0,))
