"""SparseGPT against the method written out in float64, the closed form of one removal, and magnitude pruning."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import paths
from lepton_jax.graph.moments import second_moments
from lepton_jax.pruning import apply_mask, keep_count, prune, top
from lepton_jax.pruning.criteria import Given
from lepton_jax.pruning.sparsegpt import sparsegpt, sparsegpt_prune


def layer(seed: int, inputs: int = 24, outputs: int = 10, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A weight and correlated inputs."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs)) * rng.uniform(0.2, 2, inputs)
    return rng.normal(size=(inputs, outputs)), mixed


def run(weight, x, pattern, **settings):
    new, mask = sparsegpt(jnp.asarray(weight, jnp.float32), jnp.asarray(x.T @ x, jnp.float32), pattern, **settings)
    return np.asarray(new, np.float64), np.asarray(mask)


def error(weight, new, x) -> float:
    return float((((x @ (weight - new)) ** 2).sum()) / ((x @ weight) ** 2).sum())


def written_out(weight, hessian, pattern, block_size, damping=0.01):
    """Algorithm 1 with the inverse of what is left computed anew for every input, in float64."""
    rows, columns = weight.shape
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(rows)
    inverses = [np.linalg.inv(hessian[i:, i:]) for i in range(rows)]
    costs = np.array([inverse[0, 0] for inverse in inverses])[:, None]
    w, mask, kept = weight.copy(), np.zeros(weight.shape, bool), 0
    for i in range(rows):
        if isinstance(pattern, tuple):
            n, m = pattern
            if i % m == 0:
                ranks = np.argsort(np.argsort(-(w[i : i + m] ** 2 / costs[i : i + m]), axis=0, kind="stable"), axis=0)
                mask[i : i + m] = ranks < n
        elif i % block_size == 0:
            end = min(i + block_size, rows)
            keep = (end * columns - round(pattern * end * columns)) - kept
            kept += keep
            flat = (w[i:end] ** 2 / costs[i:end]).reshape(-1)
            chosen = np.zeros(flat.size, bool)
            chosen[np.argsort(-flat, kind="stable")[:keep]] = True
            mask[i:end] = chosen.reshape(-1, columns)
        gone = np.where(mask[i], 0.0, w[i]) / inverses[i][0, 0]
        w[i:] -= np.outer(inverses[i][0], gone)
        w[i] = np.where(mask[i], w[i], 0.0)
    return w, mask


@pytest.mark.parametrize("pattern", [0.5, 0.83, (2, 4), (1, 4)])
@pytest.mark.parametrize(("seed", "block_size"), [(0, 8), (1, 16), (2, 128)])
def test_against_the_method_written_out(seed, block_size, pattern):
    weight, x = layer(seed)
    new, mask = run(weight, x, pattern, block_size=block_size)
    weight = np.asarray(weight, np.float32).astype(np.float64)
    expected, kept = written_out(weight, np.asarray(x.T @ x, np.float32).astype(np.float64), pattern, block_size)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-3)
    assert not new[~mask].any()


@pytest.mark.parametrize("seed", range(2))
def test_one_weight_removed_is_the_closed_form(seed):
    """Optimal brain surgeon: w - w_q / [H^-1]_qq H^-1 e_q, for the first input, after which all others can make up for it."""
    weight, x = layer(seed, inputs=6, outputs=1)
    weight[0] = 1e-3
    hessian = x.T @ x
    new, mask = run(weight, x, 1 / 6, damping=1e-7)
    inverse = np.linalg.inv(hessian)
    expected = weight - weight[0] / inverse[0, 0] * inverse[:, :1]
    expected[0] = 0
    assert mask[:, 0].tolist() == [False, True, True, True, True, True]
    np.testing.assert_allclose(new, expected, rtol=1e-3, atol=1e-5)
    # No other weights for the five left give less error.
    best = np.linalg.lstsq(x[:, 1:], x @ weight, rcond=None)[0]
    np.testing.assert_allclose(new[1:], best, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.95])
@pytest.mark.parametrize("shape", [(24, 10), (7, 3), (130, 2)])
def test_counts_are_exact(shape, sparsity):
    weight, x = layer(3, *shape)
    new, mask = run(weight, x, sparsity, block_size=32)
    assert mask.sum() == keep_count(weight.size, sparsity)
    assert not new[~mask].any()
    if sparsity == 0:
        np.testing.assert_array_equal(new, weight.astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_less_error_than_magnitude_at_the_same_size(seed, sparsity):
    weight, x = layer(seed + 10)
    new, mask = run(weight, x, sparsity)
    smallest = np.asarray(top(jnp.abs(jnp.asarray(weight)), sparsity))
    assert mask.sum() == smallest.sum()
    assert error(weight, new, x) < error(weight, weight * smallest, x)
    assert error(weight, new, x) < error(weight, weight * mask, x)  # it is the update that helps
    new, mask = run(weight, x, (2, 4))
    assert (mask.reshape(6, 4, 10).sum(1) == 2).all()
    sizes = np.abs(weight).reshape(6, 4, 10)
    two = (np.argsort(np.argsort(-sizes, axis=1), axis=1) < 2).reshape(weight.shape)
    assert error(weight, new, x) < error(weight, weight * two, x)


def test_equal_scores_keep_the_lower_positions():
    new, mask = sparsegpt(jnp.ones((4, 3)), jnp.eye(4), 0.5)
    assert mask.reshape(-1).tolist() == [True] * 6 + [False] * 6
    assert new.tolist() == mask.astype(jnp.float32).tolist()
    _, mask = sparsegpt(jnp.ones((4, 2)), jnp.eye(4), (1, 2))
    assert mask.tolist() == [[True, True], [False, False]] * 2


def test_the_scale_of_the_hessian_plays_no_part():
    weight, x = layer(4)
    new, mask = run(weight, x, 0.5)
    scaled, same = run(weight, 64 * x, 0.5)
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_allclose(scaled, new, rtol=1e-4, atol=1e-5)


def test_dead_inputs_go_first_and_touch_no_others():
    weight, x = layer(5)
    x[:, [2, 7]] = 0
    weight[[2, 7]] = 100.0
    new, mask = run(weight, x, 0.5)
    assert np.isfinite(new).all()
    assert not new[[2, 7]].any()
    assert not mask[[2, 7]].any()
    assert error(weight, new, x) < 0.3
    new, mask = run(weight, np.zeros_like(x), 0.5)
    assert not new.any()
    assert mask.sum() == 120


def test_narrow_weights_stay_narrow():
    weight, x = layer(6)
    narrow = jnp.asarray(weight, jnp.bfloat16)
    new, mask = sparsegpt(narrow, jnp.asarray(x.T @ x, jnp.float32), 0.5)
    assert new.dtype == jnp.bfloat16
    assert mask.dtype == jnp.bool_
    wide, same = sparsegpt(narrow.astype(jnp.float32), jnp.asarray(x.T @ x, jnp.float32), 0.5)
    np.testing.assert_array_equal(mask, same)
    np.testing.assert_array_equal(new, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "pattern", "block", "message"),
    [
        ((4, 2), 1.0, 128, r"sparsity must be in \[0, 1\)"),
        ((4, 2), (3, 2), 128, "n of m must be 0 < n <= m; got n=3, m=2"),
        ((6, 2), (2, 4), 128, "m=4 must divide the 6 inputs and the blocks of 6"),
        ((8, 2), (2, 4), 6, "m=4 must divide the 8 inputs and the blocks of 6"),
        ((5, 2), 0.5, 128, r"got \(5, 2\) and \(4, 4\)"),
        ((4, 2), 0.5, 0, "block_size must be a whole number from 1"),
    ],
)
def test_what_does_not_fit_is_refused(shape, pattern, block, message):
    size = 4 if "got (5" in message.replace("\\", "") else shape[0]
    with pytest.raises(ValueError, match=message):
        sparsegpt(jnp.ones(shape), jnp.eye(size), pattern, block_size=block)


# --------------------------------------------------------------------------------------------------------------- whole models


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def net() -> tuple:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(96, 5)) @ rng.normal(size=(5, 72))
    x = jnp.asarray((base + 0.1 * rng.normal(size=base.shape)).reshape(96, 6, 6, 2), jnp.float32)
    model = Net()
    return model, jax.jit(model.init)(jax.random.key(1), x[:1]), [x[:32], x[32:64], x[64:]]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_model_is_closer_to_itself_than_by_magnitude(net, sequential):
    model, variables, batches = net
    new, masks = sparsegpt_prune(model.apply, variables, batches, 0.6, sequential=sequential, progress=False)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    leaves, before = paths.flatten(new), paths.flatten(variables)
    assert list(masks) == [path for path in before if path.endswith("kernel")]
    for path, leaf in leaves.items():
        assert (leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype)
        if path in masks:
            assert int(masks[path].sum()) == keep_count(leaf.size, 0.6)
            assert not np.asarray(leaf)[~np.asarray(masks[path])].any()
        else:
            np.testing.assert_array_equal(leaf, before[path])
    by_size = prune(0.6)
    masked = by_size.view(*by_size.init(variables))
    x = jnp.concatenate(batches)
    truth = model.apply(variables, x)
    gap = lambda v: float(jnp.mean((model.apply(v, x) - truth) ** 2))  # noqa: E731
    assert gap(new) < gap(masked)
    # The masks go on as those of a transform.
    _, state = prune(0.6, criterion=Given(by_path=masks)).init(new)
    for path, mask in masks.items():
        np.testing.assert_array_equal(state.masks[path], mask)


def test_later_layers_see_the_pruned_ones_before_them(net):
    model, variables, batches = net
    new, _ = sparsegpt_prune(model.apply, variables, batches, 0.6, damping=0.01, progress=False)
    first, second = "params/Conv_0/kernel", "params/Dense_0/kernel"
    for seen in (paths.replace(variables, {first: paths.flatten(new)[first]}), variables):
        found = dict(second_moments(model.apply, seen, batches, second))[second]
        kernel, _ = sparsegpt(paths.flatten(variables)[second], found.second, 0.6)
        same = np.allclose(kernel, paths.flatten(new)[second], atol=1e-4)
        assert same == (seen is not variables)


def test_n_of_m_and_patterns_by_path(net):
    model, variables, batches = net
    conv, first, last = (f"params/{name}/kernel" for name in ("Conv_0", "Dense_0", "Dense_1"))
    _, masks = sparsegpt_prune(
        model.apply, variables, batches, {conv: (1, 2), first: 0.5, last: (2, 4)}, sequential=False, progress=False
    )
    assert (np.asarray(masks[conv]).sum(2) == 1).all()  # along the input channels
    assert int(masks[first].sum()) == 72 * 12 // 2
    assert (np.asarray(masks[last]).reshape(3, 4, 4).sum(1) == 2).all()
    with pytest.raises(ValueError, match=r"Conv_0/kernel: m=4 must divide the 18 inputs(.|\n)*Dense_1/kernel: has no pattern"):
        sparsegpt_prune(model.apply, variables, batches, {conv: (2, 4), first: 0.5}, progress=False)


def test_masked_weights_of_a_transposed_layer():
    rng = np.random.default_rng(2)
    variables = {"w": jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8)), jnp.float32)
    new, masks = sparsegpt_prune(lambda v, x: x @ v["w"].T, variables, [x], (2, 4), damping=0.01, progress=False)
    assert (np.asarray(masks["w"]).reshape(5, 2, 4).sum(2) == 2).all()
    direct, mask = sparsegpt(variables["w"].T, x.T @ x, (2, 4))
    np.testing.assert_array_equal(masks["w"], mask.T)
    np.testing.assert_allclose(new["w"], direct.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(apply_mask(new["w"], masks["w"]), new["w"])


def test_layers_of_a_scan_are_pruned_each_with_its_own_inputs():
    rng = np.random.default_rng(3)
    variables = {"w": jnp.asarray(rng.normal(size=(3, 8, 8)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8)), jnp.float32)
    apply = lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["w"])[0]  # noqa: E731
    new, masks = sparsegpt_prune(apply, variables, [x], 0.5, damping=0.01, progress=False)
    for number in range(3):
        direct, mask = sparsegpt(variables["w"][number], x.T @ x, 0.5)
        np.testing.assert_array_equal(masks["w"][number], mask)
        np.testing.assert_allclose(new["w"][number], direct, rtol=1e-3, atol=1e-4)
        x = jnp.tanh(x @ variables["w"][number])


def test_inputs_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="w: the inputs of the layer, or its weights, are not finite"):
        sparsegpt_prune(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 2))}, [jnp.full((3, 2), jnp.inf)], 0.5, progress=False)
    with pytest.raises(ValueError, match="at least one calibration batch"):
        sparsegpt_prune(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 2))}, [], 0.5, progress=False)


@pytest.mark.parametrize("seed", range(3))
def test_few_rows_are_not_followed_further_than_they_carry(seed):
    """On other rows of the same kind, outputs are nearer than without the smallest weights, and than by a damping of 0.01."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(96), np.arange(96))))
    few, many = (jnp.asarray(rng.normal(size=(rows, 96)) @ mix.T, jnp.float32) for rows in (40, 3000))
    w = jnp.asarray(rng.normal(size=(96, 24)), jnp.float32)

    def error(**options):
        new, _ = sparsegpt_prune(lambda v, x: x @ v["w"], {"w": w}, [few[:15], few[15:]], 0.5, progress=False, **options)
        return float(jnp.sum((many @ (new["w"] - w)) ** 2))

    smallest = float(jnp.sum((many @ jnp.where(jnp.abs(w) < jnp.median(jnp.abs(w)), w, 0)) ** 2))
    assert error() < min(smallest, 0.5 * error(damping=0.01))
