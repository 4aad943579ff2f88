"""The simple surface: techniques compose, what is saved answers alike, and what is wrong is said."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lepton_jax as lepton
from lepton_jax import Model, compress_model, distill_model, load_model, prune_model, quantize_model, save_model
from lepton_jax.core import paths
from lepton_jax.distillation import soft_targets
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization import Codebook, Uniform


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(24)(x)))
        return nn.Dense(4)(x)


X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 10)), jnp.float32)


@functools.cache
def model():
    return Model.from_linen(Net(), jax.jit(Net().init)(jax.random.key(0), X[:2]), X[:2], train=False)


def kernels(model):
    return {path: np.asarray(leaf) for path, leaf in paths.select(model.dense, paths.matrices).items()}


def test_a_model_computes_apply_and_does_not_change():
    dense = model()
    np.testing.assert_array_equal(dense(X), jax.jit(Net().apply)(dense.variables, X))
    before = kernels(dense)
    quantize_model(prune_model(dense, sparsity=0.5))
    jax.tree.map(np.testing.assert_array_equal, kernels(dense), before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dense.variables = {}


def test_threshold_and_sparsity_prune_what_they_say():
    dense = model()
    for path, kernel in kernels(prune_model(dense, threshold=0.1)).items():
        original = kernels(dense)[path]
        np.testing.assert_array_equal(kernel, np.where(np.abs(original) < 0.1, 0, original))
        assert 0 < np.count_nonzero(kernel) < kernel.size
    one = kernels(prune_model(dense, sparsity=0.75, select="*/Dense_0/kernel"))
    assert np.count_nonzero(one["params/Dense_0/kernel"]) == 60
    assert np.count_nonzero(one["params/Dense_1/kernel"]) == 96
    whole = kernels(prune_model(dense, sparsity=0.75, scope="global"))
    assert sum(map(np.count_nonzero, whole.values())) == (240 + 96) // 4


@pytest.mark.parametrize("precision", [2, 4, 8, Uniform(bits=3, symmetric=False), Codebook(bits=3)], ids=str)
def test_pruned_weights_stay_zero_through_quantization_and_back(precision):
    pruned = prune_model(model(), sparsity=0.8)
    both = quantize_model(pruned, precision)
    for path, kernel in kernels(both).items():
        assert (kernel[kernels(pruned)[path] == 0] == 0).all()
        bits = precision if isinstance(precision, int) else precision.bits
        assert len(np.unique(kernel[:, 0])) <= 2**bits
    again = prune_model(both, sparsity=0.9)  # packed leaves are masked as they are
    assert type(again.variables["params"]["Dense_0"]["kernel"]) is type(both.variables["params"]["Dense_0"]["kernel"])
    for path, kernel in kernels(again).items():
        assert np.count_nonzero(kernel) <= round(0.1 * kernel.size) + 1
        np.testing.assert_array_equal(kernel[kernel != 0], kernels(both)[path][kernel != 0])


def test_error_of_eight_bits_is_half_a_step():
    for path, kernel in kernels(quantize_model(model())).items():
        original = kernels(model())[path].astype(np.float64)
        step = np.abs(original).max(axis=0, keepdims=True) / 127
        assert (np.abs(kernel - original) <= 0.5001 * step).all()


def test_low_rank_is_the_best_of_its_rank_and_its_factors_can_be_pruned_and_quantized():
    dense = model()
    low = compress_model(dense, rank=3)
    original = kernels(dense)["params/Dense_0/kernel"].astype(np.float64)
    values = np.linalg.svd(original, compute_uv=False)
    error = np.square(original - kernels(low)["params/Dense_0/kernel"]).sum()
    np.testing.assert_allclose(error, np.square(values[3:]).sum(), rtol=1e-5)
    assert isinstance(low.variables["params"]["Dense_1"]["kernel"], LowRank)  # (24 + 4) 3 < 24 4
    assert isinstance(compress_model(dense, 4).variables["params"]["Dense_1"]["kernel"], jax.Array)  # would be larger
    assert compress_model(dense, 0.5).variables["params"]["Dense_0"]["kernel"].rank == 5
    small = quantize_model(prune_model(low, sparsity=0.5), 8)
    for same in (compress_model(dense, 3, sparsity=0.5, format=8), quantize_model(prune_model(low, sparsity=0.5), precision=8)):
        assert same.applied == small.applied
        jax.tree.map(np.testing.assert_array_equal, same.variables, small.variables)
    leaf = small.variables["params"]["Dense_0"]["kernel"]
    assert isinstance(leaf.u, QArray)
    assert np.count_nonzero(leaf.u.unpack()) <= 15
    assert [step.text for step in small.applied] == ["factorize(rank=3)", "prune(sparsity=0.5)", "quantize(8 bits)"]


def test_low_rank_of_a_quantized_leaf_is_quantized_and_of_a_codebook_refused():
    leaf = compress_model(quantize_model(model(), 4), rank=2).variables["params"]["Dense_0"]["kernel"]
    assert (leaf.u.format.bits, leaf.v.format.bits) == (4, 4)
    with pytest.raises(ValueError, match=r"Dense_0/kernel: is a CodebookArray; factorize first"):
        compress_model(quantize_model(model(), Codebook(bits=2)), rank=2)
    with pytest.raises(ValueError, match=r"Dense_0/kernel/u: is a factor already"):
        compress_model(compress_model(model(), rank=4), rank=2)


@pytest.mark.parametrize("native", [False, True])
def test_a_saved_model_answers_bit_for_bit_and_goes_on(native, tmp_path):
    small = quantize_model(prune_model(compress_model(model(), rank=3), sparsity=0.5), 4)
    assert save_model(small, tmp_path / "m.lepton", native=native) is small
    loaded = load_model(tmp_path / "m.lepton")
    np.testing.assert_array_equal(loaded(X), small(X))
    assert loaded.report() == small.report()
    fewer = prune_model(loaded, sparsity=0.7)
    fewer.save(tmp_path / "fewer.lepton")
    np.testing.assert_array_equal(load_model(tmp_path / "fewer.lepton")(X), fewer(X))
    np.testing.assert_array_equal(fewer(X), prune_model(small, sparsity=0.7)(X))
    np.testing.assert_allclose(small.native()(X), small(X), rtol=1e-4, atol=1e-5)


def test_an_nnx_model_is_pruned_saved_and_loaded(tmp_path):
    module = nnx.Sequential(nnx.Linear(10, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(1)), nnx.Dropout(0.5))
    module.eval()
    dense = Model.from_nnx(module, X[:2])
    np.testing.assert_allclose(dense(X), module(X), rtol=1e-5, atol=1e-6)
    small = quantize_model(prune_model(dense, sparsity=0.5), 8)
    small.save(tmp_path / "m.lepton")
    np.testing.assert_array_equal(load_model(tmp_path / "m.lepton")(X), small(X))
    assert np.count_nonzero(kernels(small)["params/layers/0/kernel"]) == 30


def test_soft_targets_are_hintons():
    rng = np.random.default_rng(5)
    student, teacher = rng.normal(size=(2, 6, 4)) * 3

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    p, q = log_softmax(teacher / 3.0), log_softmax(student / 3.0)
    expected = 9.0 * (np.exp(p) * (p - q)).sum(axis=-1)
    found = soft_targets(jnp.float32(student), jnp.float32(teacher), 3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


FORMS = {
    "pruned": lambda m: prune_model(m, sparsity=0.5),
    "quantized": lambda m: quantize_model(prune_model(m, sparsity=0.5), 3),
    "codebook": lambda m: quantize_model(prune_model(m, sparsity=0.5), Codebook(bits=2)),
    "low rank": lambda m: quantize_model(compress_model(m, rank=3), 8),
}


@pytest.mark.parametrize("form", FORMS)
def test_distillation_repairs_and_keeps_the_form(form):
    teacher = model()
    student = FORMS[form](teacher)

    def error(one):
        return float(soft_targets(one(X), teacher(X), 2.0).mean())

    settings = {"steps": 60, "batch_size": 16, "learning_rate": 1e-2, "temperature": 2.0, "progress": False}
    trained = distill_model(student, teacher, X, **settings)
    assert error(trained) < 0.7 * error(student)
    structure = jax.tree.structure(student.variables)
    assert jax.tree.structure(trained.variables) == structure  # formats and shapes are part of it
    for path, kernel in kernels(student).items():
        if form != "low rank":
            assert (kernels(trained)[path][kernel == 0] == 0).all()
    stats = paths.flatten(trained.variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, stats, paths.flatten(teacher.variables["batch_stats"]))
    again = distill_model(student, teacher, X, **settings)
    jax.tree.map(np.testing.assert_array_equal, again.variables, trained.variables)


def test_distillation_learns_labels_where_the_teacher_is_silent():
    labels = np.asarray(jnp.argmax(X[:, :4], axis=1))
    silent = Model(lambda v, x: x[:, :4] * v["zero"], {"zero": jnp.zeros(())})
    trained = distill_model(
        model(), silent, (X, labels), steps=150, batch_size=32, label_weight=1.0, learning_rate=3e-2, progress=False
    )
    assert (np.asarray(trained(X)).argmax(axis=1) == labels).mean() > 0.9


def test_the_report_counts_what_is_there():
    text = quantize_model(prune_model(model(), sparsity=0.75), 4).report()
    lines = text.splitlines()
    row = next(line.split() for line in lines if line.startswith("params/Dense_0/kernel"))
    # 240 codes of 4 bits, and 24 scales and zero points of 4 bytes.
    assert row[:7] == ["params/Dense_0/kernel", "int4", "10x24", "240", "60", "25.0", "%"]
    assert row[7:] == [f"{240 // 2 + 24 * 8}", f"{960 / 312:.1f}x"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == "applied: prune(sparsity=0.75), quantize(4 bits)"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: prune_model(m), TypeError, "give either threshold=0.1 or sparsity=0.9; got neither"),
        (lambda m: prune_model(m, threshold=0.1, sparsity=0.5), TypeError, "got both"),
        (
            lambda m: prune_model(m, 0.9),
            TypeError,
            "too many positional arguments; it takes model, sparsity=, threshold=, select=",
        ),
        (lambda m: compress_model(m), TypeError, "give at least one of rank=0.25, sparsity=0.9 and format=4; got none"),
        (lambda m: prune_model(m, threshold=-0.1), ValueError, "threshold must be 0 or more"),
        (lambda m: prune_model(m, threshold=float("nan")), ValueError, "threshold must be 0 or more"),
        (lambda m: prune_model(m, threshold=9.0), ValueError, r"params/Dense_0/kernel: its largest magnitude is 0\."),
        (lambda m: prune_model(m, threshold=0.1, scope="global"), TypeError, "scope goes with sparsity="),
        (lambda m: prune_model(m, sparsity=1.5), ValueError, "sparsity must be in"),
        (lambda m: quantize_model(m, 17), ValueError, "bits must be a whole number from 2 to 8; got 17"),
        (lambda m: quantize_model(m, select="no*"), ValueError, "matches no floating leaf"),
        (lambda m: compress_model(m, 0), ValueError, "rank must be a whole number from 1, or a fraction"),
        (lambda m: compress_model(m, 200), ValueError, r"makes no selected leaf smaller: params/Dense_0/kernel \(10, 24\)"),
        (lambda m: Model(Net(), m.variables), TypeError, r"got the flax.linen module Net. Write Model.from_linen\("),
        (lambda m: Model(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), {}), TypeError, r"Write Model.from_nnx\("),
        (lambda m: Model(3, {}), TypeError, "must be a pure function"),
        (lambda m: Model(m.apply, m.variables, X), TypeError, "example must be a tuple of inputs"),
        (lambda m: Model(m.apply, m.variables).save("x.lepton"), ValueError, "needs example inputs"),
        (lambda m: distill_model(m, m, X, batch_size=33), ValueError, "batch_size: must be 1 to 32"),
        (lambda m: distill_model(m, m, (X, np.zeros(3, int))), ValueError, r"one length, with examples; got lengths \[3, 32\]"),
        (lambda m: distill_model(m, m, X, batch_size=8, temperature=0), ValueError, "temperature: must be above 0"),
        (lambda m: distill_model(m, m, X, batch_size=8, label_weight=2), ValueError, "label_weight: must be in"),
        (lambda m: distill_model(m, m, X, batch_size=8, steps=0), ValueError, "steps must be a whole number from 1"),
    ],
)
def test_what_is_wrong_is_said(call, kind, message):
    with pytest.raises(kind, match=message):
        call(model())


def test_the_program_of_a_file_cannot_be_trained(tmp_path):
    model().save(tmp_path / "m.lepton")
    loaded = load_model(tmp_path / "m.lepton")
    with pytest.raises(ValueError, match="no derivative; make it of the original function"):
        distill_model(loaded, model(), X, batch_size=8)
    trained = distill_model(Model(model().apply, loaded.variables), loaded, X, batch_size=8, steps=2, progress=False)
    assert trained.applied[-1].text == "distill(steps=2, temperature=4)"
    assert lepton.load(tmp_path / "m.lepton").manifest["batch"] == "symbolic"
