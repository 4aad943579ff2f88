"""Every factorization against the dense weight, singular values in float64, and its own count of parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import chain, fake_quant, low_rank, pack, prune
from lepton_jax.core import paths
from lepton_jax.leaves.cp import CP
from lepton_jax.leaves.factors import Factors, dense_shape
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.separable import Separable
from lepton_jax.leaves.tensor_train import TensorTrain
from lepton_jax.leaves.tensor_train_matrix import TensorTrainMatrix
from lepton_jax.leaves.tucker import Tucker
from lepton_jax.lowrank import (
    CpAls,
    Method,
    SkippedWarning,
    SpatialSvd,
    Svd,
    TrainMatrixSvd,
    TrainSvd,
    Tucker2,
    factors_of,
)
from lepton_jax.lowrank.method import as_ranks
from lepton_jax.native.interpreter import packed, unpacked

METHODS = [Svd(), Svd(rows=2), SpatialSvd(), Tucker2(), CpAls(iterations=20), TrainSvd()]
LEAVES = {Svd: LowRank, SpatialSvd: Separable, Tucker2: Tucker, CpAls: CP, TrainSvd: TensorTrain}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


KERNEL = draw(3, 2, 4, 5)
MATRIX = draw(12, 20)


def error(leaf: LowRank | Factors, weight: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(leaf.unpack(), np.float64) - weight))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_highest_rank_reproduces_the_weight(method: Method) -> None:
    leaf = method.factorize(jnp.asarray(KERNEL), method.max_rank(KERNEL.shape))
    assert type(leaf) is LEAVES[type(method)]
    assert (leaf.shape, leaf.dtype) == (KERNEL.shape, jnp.float32)
    np.testing.assert_allclose(leaf.unpack(), KERNEL, atol=1e-5)
    assert method.parameters(KERNEL.shape, method.max_rank(KERNEL.shape)) == sum(part.size for part in jax.tree.leaves(leaf))


def test_the_highest_ranks_of_a_matrix_train_reproduce_it() -> None:
    method = TrainMatrixSvd(cores=3)
    assert method.modes(MATRIX.shape) == ((3, 5), (2, 2), (2, 2))
    leaf = method.factorize(jnp.asarray(MATRIX), method.max_rank(MATRIX.shape))
    assert isinstance(leaf, TensorTrainMatrix)
    np.testing.assert_allclose(leaf.unpack(), MATRIX, atol=1e-5)
    assert dense_shape(leaf) == leaf.shape == MATRIX.shape


@pytest.mark.parametrize("method", [Svd(), Svd(rows=1), Svd(rows=2), SpatialSvd()], ids=repr)
def test_one_decomposition_reaches_the_error_of_eckart_and_young(method: Method) -> None:
    orders = {1: (0, 1, 2, 3), 2: (0, 1, 2, 3), None: (0, 1, 2, 3)}
    matrix = KERNEL.transpose(0, 2, 1, 3).reshape(12, 10)
    if isinstance(method, Svd):
        rows = {1: 3, 2: 6, None: 24}[method.rows]
        matrix = KERNEL.transpose(orders[method.rows]).reshape(rows, -1)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    [given] = method.matrices(jnp.asarray(KERNEL))
    np.testing.assert_array_equal(given, matrix)
    for rank in (1, 2, 3):
        leaf = method.factorize(jnp.asarray(KERNEL), rank)
        np.testing.assert_allclose(error(leaf, KERNEL), np.sqrt(np.sum(values[rank:] ** 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "ranks"), [(Tucker2(), (2, 3)), (Tucker2(iterations=0), (3, 2)), (TrainSvd(), (2, 3, 2))], ids=repr
)
def test_ranks_below_the_highest_stay_within_what_their_unfoldings_leave_out(method: Method, ranks: tuple[int, ...]) -> None:
    """Below: no single unfolding can do better. Above: all of them together (Oseledets 2011, theorem 2.2)."""
    unfoldings = {Tucker2: ("c", "n"), TrainSvd: ("c", "cx", "cxy")}[type(method)]
    left_out = []
    for rows, rank, given in zip(unfoldings, ranks, method.matrices(jnp.asarray(KERNEL))):
        columns = "".join(letter for letter in ("xycn" if isinstance(method, Tucker2) else "cxyn") if letter not in rows)
        dense = np.einsum(f"xycn->{rows}{columns}", KERNEL).reshape(given.shape)
        np.testing.assert_array_equal(given, dense)
        left_out.append(np.sum(np.linalg.svd(dense.astype(np.float64), compute_uv=False)[rank:] ** 2))
    leaf = method.factorize(jnp.asarray(KERNEL), ranks)
    assert max(left_out) - 1e-4 <= error(leaf, KERNEL) ** 2 <= sum(left_out) + 1e-4
    assert method.parameters(KERNEL.shape, ranks) == sum(part.size for part in jax.tree.leaves(leaf))


def test_the_alternation_of_tucker_lowers_the_error() -> None:
    errors = [error(Tucker2(iterations=n).factorize(jnp.asarray(KERNEL), (2, 2)), KERNEL) for n in (0, 1, 5)]
    assert errors[0] > errors[1] > errors[2]


def test_cp_finds_a_sum_of_outer_products() -> None:
    truth = CP(tuple(jnp.asarray(draw(n, 2, seed=i)) for i, n in enumerate((3, 3, 6, 7))), (3, 3, 6, 7))
    kernel = np.asarray(truth.unpack())
    begin, found = (error(CpAls(iterations=n).factorize(jnp.asarray(kernel), 2), kernel) for n in (0, 200))
    assert begin > 0.1 * np.linalg.norm(kernel)
    assert found < 2e-3 * np.linalg.norm(kernel)
    leaf = CpAls(iterations=200).factorize(jnp.asarray(kernel), 2)
    norms = [np.linalg.norm(factor, axis=0) for factor in leaf.factors]
    for other in norms[1:]:
        np.testing.assert_allclose(other, norms[0], rtol=1e-4)


@pytest.mark.parametrize("method", [Svd(), SpatialSvd(), Tucker2(), CpAls(iterations=10), TrainSvd()], ids=repr)
def test_stacked_layers_are_factorized_each_by_itself(method: Method) -> None:
    stack = np.stack([KERNEL, draw(*KERNEL.shape, seed=1)])
    stacked = type(method)(**{**vars(method), "stacked": 1})
    leaf = stacked.factorize(jnp.asarray(stack), 2)
    assert leaf.shape == stack.shape
    expected = [method.factorize(jnp.asarray(kernel), 2).unpack() for kernel in stack]
    np.testing.assert_allclose(leaf.unpack(), np.stack(expected), rtol=1e-3, atol=1e-4)
    assert stacked.parameters(stack.shape, 2) == 2 * method.parameters(KERNEL.shape, 2)
    assert stacked.max_rank(stack.shape) == method.max_rank(KERNEL.shape)
    for given, single in zip(stacked.matrices(jnp.asarray(stack)), method.matrices(jnp.asarray(KERNEL))):
        np.testing.assert_array_equal(given[0], single)


@pytest.mark.parametrize("method", [Svd(), TrainMatrixSvd(cores=2)], ids=repr)
def test_half_precision_is_decomposed_in_float32(method: Method) -> None:
    weight = jnp.asarray(MATRIX, jnp.bfloat16)
    leaf = method.factorize(weight, method.max_rank(weight.shape))
    assert leaf.dtype == leaf.unpack().dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(leaf.unpack()), np.float32(weight), atol=0.1)


def test_ranks_out_of_reach_are_lowered_and_counted() -> None:
    tucker, train = Tucker2(), TrainSvd()
    leaf = tucker.factorize(jnp.asarray(KERNEL), (4, 5))
    assert leaf.core.shape == (3, 2, 4, 5)
    pointwise = draw(1, 1, 4, 5)
    leaf = tucker.factorize(jnp.asarray(pointwise), (4, 2))
    assert leaf.core.shape == (1, 1, 2, 2)
    assert tucker.parameters(pointwise.shape, (4, 2)) == sum(part.size for part in jax.tree.leaves(leaf))
    leaf = train.factorize(jnp.asarray(KERNEL), (1, 8, 5))
    assert [core.shape for core in leaf.cores] == [(4, 1), (1, 3, 3), (3, 2, 5), (5, 5)]
    assert train.parameters(KERNEL.shape, (1, 8, 5)) == sum(part.size for part in jax.tree.leaves(leaf))
    with pytest.raises(ValueError, match=r"Tucker2: takes 2 ranks, or one for all of them; got \(1, 2, 3\)"):
        as_ranks(tucker, (1, 2, 3), 2)


# ---------------------------------------------------------------------------------------------------------- as a transform


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, kernel_dilation=2)(x))
        return nn.Dense(4)(x.mean((1, 2)))


IMAGES = jnp.asarray(draw(2, 8, 8, 3))


def net() -> dict:
    return jax.jit(Net().init)(jax.random.key(0), IMAGES)


@pytest.mark.parametrize(
    ("method", "rank"),
    [(SpatialSvd(), 2), (Tucker2(), (2, 3)), (CpAls(iterations=5), 3), (TrainSvd(), 2), (Svd(), 3)],
    ids=lambda value: type(value).__name__,
)
def test_convolutions_run_in_parts_with_strides_dilation_and_groups(method: Method, rank: int) -> None:
    variables = net()
    transform = low_rank(rank, method=method, select="*Conv*kernel")
    params, state = jax.jit(transform.init)(variables)
    assert unpacked(Net().apply, params, IMAGES) == ()
    native, dense = jax.jit(packed(Net().apply))(params, IMAGES), jax.jit(Net().apply)(transform.view(params, state), IMAGES)
    np.testing.assert_allclose(native, dense, rtol=1e-4, atol=1e-5)


def test_the_optimizer_follows_the_parts_and_they_are_pruned_and_quantized() -> None:
    variables = net()
    factors = low_rank({"params/Conv_0/kernel": (2, 3)}, method=Tucker2(), select="*Conv*kernel")
    transform, tx = chain(factors, prune(0.5, select="*kernel*"), fake_quant(bits=8, select="*kernel*")), optax.adam(1e-2)
    params, state = jax.jit(transform.init)(variables)
    opt = tx.init(params)
    names = [f"params/Conv_0/kernel/{name}" for name in ("first", "core", "last")]
    assert [path for path in paths.flatten(opt[0].mu) if "Conv_0/kernel" in path] == names
    assert isinstance(params["params"]["Conv_1"]["kernel"], jax.Array)  # in the selection, not in the mapping

    @jax.jit
    def step(params: dict, state: object, opt: object) -> tuple:
        grads = jax.grad(lambda p: jnp.mean(Net().apply(transform.view(p, state), IMAGES) ** 2))(params)
        updates, opt = tx.update(grads, opt, params)
        params, state = transform.update(optax.apply_updates(params, updates), state, grads, 0)
        return params, state, opt

    before = params
    for _ in range(2):
        params, state, opt = step(params, state, opt)
    compressed = jax.jit(lambda params, state: pack(transform, params, state))(params, state)
    leaf = compressed["params"]["Conv_0"]["kernel"]
    for name in ("first", "core", "last"):
        part = getattr(leaf, name)
        assert part.format.bits == 8
        assert int((part.unpack() == 0).sum()) >= part.size // 2
        assert not np.array_equal(
            getattr(params["params"]["Conv_0"]["kernel"], name), getattr(before["params"]["Conv_0"]["kernel"], name)
        )
    out = jax.jit(packed(Net().apply))(compressed, IMAGES)
    seen = jax.jit(lambda params, state, x: Net().apply(transform.view(params, state), x))(params, state, IMAGES)
    np.testing.assert_allclose(out, seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [SpatialSvd(), CpAls(iterations=3), TrainSvd()], ids=lambda m: type(m).__name__)
def test_gradients_of_parts_are_those_through_the_product(method: Method) -> None:
    transform = low_rank(2, method=method)
    params, state = transform.init({"w": jnp.asarray(KERNEL)})
    slope = jnp.asarray(draw(*KERNEL.shape, seed=3))
    grads = jax.grad(lambda p: jnp.sum(slope * transform.view(p, state)["w"] ** 2))(params)["w"]
    through = jax.grad(lambda leaf: jnp.sum(slope * jnp.einsum(SUMS[type(leaf)], *jax.tree.leaves(leaf)) ** 2))(params["w"])
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(through)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


SUMS = {Separable: "xcr,yrn->xycn", CP: "xr,yr,cr,nr->xycn", TensorTrain: "ci,ixj,jyk,kn->xycn"}


class Halves:
    """A rule: half of the smaller side, and nothing for biases of two axes."""

    def ranks(self, weights: dict, method: Method) -> dict:
        return {path: method.at(path).max_rank(weight.shape) // 2 for path, weight in weights.items() if "bias" not in path}


def test_ranks_come_from_a_mapping_or_a_rule() -> None:
    tree = {"a": jnp.asarray(MATRIX), "b": jnp.asarray(draw(6, 4)), "bias": jnp.ones((2, 2))}
    params, _ = low_rank({"a": 3, "b": 2}).init(tree)
    assert (params["a"].rank, params["b"].rank) == (3, 2)
    assert params["bias"] is tree["bias"]
    params, _ = low_rank(Halves()).init(tree)
    assert (params["a"].rank, params["b"].rank) == (6, 2)
    assert params["bias"] is tree["bias"]
    with pytest.raises(ValueError, match=r"ranks for leaves that are not selected, or not supported:\n  c: there are a, b"):
        low_rank({"c": 1}).init(tree)
    with pytest.raises(ValueError, match=r"these ranks:\n  a: rank 13; shape \(12, 20\); the rank must be 1 to 12"):
        low_rank({"a": 13, "b": 2}).init(tree)
    with pytest.raises(ValueError, match=r"rank of a must be a whole number from 1 up; got 2.5"):
        low_rank({"a": 2.5}).init(tree)


def test_what_a_method_cannot_factorize_is_an_error_or_skipped_with_a_word() -> None:
    variables = net()
    with pytest.raises(
        ValueError, match=r"SpatialSvd cannot factorize these.*:\n  params/Dense_0/kernel: shape \(6, 4\) has 2 axes"
    ):
        low_rank(2, method=SpatialSvd()).init(variables)
    with pytest.warns(SkippedWarning, match=r"SpatialSvd leaves 1 of 3 leaves dense: params/Dense_0/kernel: shape \(6, 4\)"):
        params, _ = low_rank(2, method=SpatialSvd(), unsupported="skip").init(variables)
    assert isinstance(params["params"]["Conv_0"]["kernel"], Separable)
    assert params["params"]["Dense_0"]["kernel"] is variables["params"]["Dense_0"]["kernel"]
    for method, shape in [
        (Tucker2(), (3, 3)),
        (CpAls(), (4, 4)),
        (TrainSvd(), (5, 5)),
        (TrainMatrixSvd(), (2, 2, 2)),
        (Svd(rows=2), (3, 3)),
    ]:
        assert "axes" in method.refusal(shape)


def test_ranks_too_high_are_named_with_all_limits() -> None:
    with pytest.raises(ValueError, match=r"w: shape \(3, 2, 4, 5\); the rank must be from 1 to \(4, 5\), one for each"):
        factors_of({"w": jnp.asarray(KERNEL)}, {"w": (5, 5)}, Tucker2())
    with pytest.raises(ValueError, match=r"w: shape .* the rank must be from 1 to \(4, 5\)"):
        low_rank(5, method=Tucker2()).init({"w": jnp.asarray(KERNEL)})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: low_rank(2, method=Svd), "method must be a factorization such as Svd"),
        (lambda: low_rank(2, unsupported="warn"), "unsupported must be 'raise' or 'skip'; got 'warn'"),
        (lambda: low_rank((2, 0)), "rank must be a whole number from 1 up; got 0"),
        (lambda: low_rank(()), r"rank must be a whole number from 1 up; got \(\)"),
        (lambda: Svd(rows=0), "Svd: rows must be a whole number from 1 up; got 0"),
        (lambda: Svd(stacked=-1), "Svd: stacked must be a whole number from 0 up; got -1"),
        (lambda: Tucker2(iterations=1.5), "Tucker2: iterations must be a whole number"),
        (lambda: CpAls(damping=-1), "CpAls: damping must be 0 or more; got -1"),
        (lambda: TrainMatrixSvd(cores=1), "TrainMatrixSvd: cores must be a whole number from 2 to 13; got 1"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build()
