"""A saved model comes back: the same bits, the same answers, without its code; and every byte is accounted for."""

import collections
import os
import subprocess
import sys
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lepton_jax.artifact import ArtifactError, FixedBatchWarning, account, leaves, load, save
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader
from lepton_jax.core.packed import unpack
from lepton_jax.formats import Uniform
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.sparse import Sparse


def assert_same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def codebook_leaf(rng, shape, k=4, density=0.2):
    codes = jnp.asarray(np.where(rng.random(shape) < density, rng.integers(1, k + 1, shape), 0).astype(np.uint8))
    entries = jnp.asarray(np.sort(rng.normal(size=k)).astype(np.float16).astype(np.float32))
    return CodebookArray(pack_bits(codes, 3), entries, 3, shape, "float32")


def apply(variables, x):
    for name in ("Dense_0", "Dense_1"):
        layer = variables["params"][name]
        x = jnp.tanh(x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)[None, :])
    return x


def model(seed=0):
    rng = np.random.default_rng(seed)
    factors = LowRank(
        quantize(jnp.asarray(rng.normal(size=(30, 3)), jnp.float32), Uniform(bits=4)),
        Sparse.from_dense(jnp.asarray(np.where(rng.random((3, 5)) < 0.5, rng.normal(size=(3, 5)), 0), jnp.float32)),
        (30, 5),
    )
    return {
        "params": {
            "Dense_0": {"kernel": codebook_leaf(rng, (49, 30)), "bias": jnp.asarray(rng.normal(size=30), jnp.bfloat16)},
            "Dense_1": {"kernel": factors, "bias": jnp.zeros(5, jnp.float16)},
        }
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.lepton"
    save(path, apply, model(), jnp.ones((2, 49)), recipe={"bits": 2}, metrics={"error": 0.25})
    return path


def test_packed_leaves_and_dense_variables_come_back_bit_for_bit(saved):
    packed, artifact = model(), load(saved)
    assert jax.tree.structure(artifact.packed) == jax.tree.structure(packed)
    jax.tree.map(assert_same_bits, artifact.packed, packed)
    jax.tree.map(assert_same_bits, artifact.variables, unpack(packed))


def test_outputs_equal_the_live_model_for_any_batch_in_a_fresh_process(saved, tmp_path):
    dense = jax.jit(unpack)(model())
    x = np.random.default_rng(1).normal(size=(6, 49)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np; from lepton_jax.artifact import load; a = load(sys.argv[1]); x = np.load(sys.argv[2]);"
        "np.savez(sys.argv[3], six=a(x), one=a(x[:1])); assert 'pickle' not in a.manifest"
    )
    command = [sys.executable, "-c", code, str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    outputs = np.load(tmp_path / "y.npz")
    assert_same_bits(outputs["six"], jax.jit(apply)(dense, x))
    assert_same_bits(outputs["one"], jax.jit(apply)(dense, x[:1]))


def test_manifest_says_what_is_inside(saved):
    manifest = load(saved).manifest
    assert manifest["version"] == [1, 5]
    assert manifest["batch"] == "symbolic"
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["recipe"], manifest["metrics"]) == ({"bits": 2}, {"error": 0.25})
    assert manifest["jax"] == jax.__version__
    kinds = {path: tensor["kind"] for path, tensor in manifest["tensors"].items()}
    assert kinds == {
        "params/Dense_0/bias": "array",
        "params/Dense_0/kernel": "codebook",
        "params/Dense_1/bias": "array",
        "params/Dense_1/kernel/u": "quantized",
        "params/Dense_1/kernel/v": "sparse",
    }


def test_account_adds_up_and_its_ratios_are_what_they_say(saved):
    figures = account(saved)
    size = os.path.getsize(saved)
    assert figures.total == size == sum(figures.categories.values())
    dense = 4 * sum(leaf.size for leaf in jax.tree.leaves(unpack(model())))
    assert figures.dense_bytes == dense
    assert figures.ratio == dense / (size - figures.program)
    assert figures.file_ratio == (dense + figures.program) / size
    by_path = {tensor.path: tensor for tensor in figures.tensors}
    kernel = by_path["params/Dense_0/kernel"]
    assert kernel.nonzeros == int(jnp.count_nonzero(model()["params"]["Dense_0"]["kernel"].unpack()))
    assert kernel.bytes["positions"] > 0
    assert kernel.bytes["values"] > 0
    assert by_path["params/Dense_1/kernel/u"].bytes["scales"] > 0
    lines = str(figures).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-2].split()[-1] == str(size)


def test_a_loaded_file_knows_its_account_and_coders(saved):
    artifact = load(saved)
    assert artifact.account() == account(saved)
    tensors = {tensor.path: tensor for tensor in artifact.account().tensors}
    for path, entry in artifact.manifest["tensors"].items():
        assert entry["coders"] == list(tensors[path].coders) != []
        assert entry["bytes"] == tensors[path].bytes


def test_the_three_ratios_are_of_different_things(tmp_path):
    """By hand: 40 weights of 2 bits, 3 of them kept, the gaps 0, 3 and 33, which takes one padding zero of 5 bits' gaps."""
    codes = np.zeros(40, np.uint8)
    codes[[0, 4, 38]] = [1, 3, 2]
    leaf = CodebookArray(pack_bits(jnp.asarray(codes), 2), jnp.array([-1.0, 0.5, 2.0]), 2, (8, 5), "float32")
    save(tmp_path / "m.lepton", first, {"w": leaf}, jnp.ones((1, 2)))
    figures = account(tmp_path / "m.lepton")
    assert figures.nonzero_ratio == 40 / 3
    assert figures.packed_ratio == pytest.approx(160 / ((3 + 1) * (5 + 2) / 8 + 3 * 4))
    size = os.path.getsize(tmp_path / "m.lepton")
    assert figures.file_ratio == (160 + figures.program) / size
    shares = np.array([37, 1, 1, 1]) / 40
    assert figures.entropy_bytes == pytest.approx(-40 * (shares * np.log2(shares)).sum() / 8)
    line = str(figures).splitlines()[-1]
    assert all(f"{name} {getattr(figures, name):.1f}x" in line for name in ("nonzero_ratio", "packed_ratio", "file_ratio"))


def large_leaves():
    rng = np.random.default_rng(0)
    words = jnp.asarray((rng.normal(size=1_000_000) * 20 + 127).clip(0, 254).astype(np.uint8))
    yield QArray(words, jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32), Uniform(bits=8), (1000, 1000), "float32")
    mask, values = rng.random(40_000) < 0.05, rng.normal(size=40_000).astype(np.float32)
    packed = jnp.asarray(np.packbits(mask, bitorder="little"))
    yield Sparse(jnp.asarray(values[mask]), packed, (200, 200), "float32")
    yield jnp.asarray(rng.normal(size=300_000).astype(np.float32))


@pytest.mark.parametrize("leaf", list(large_leaves()))
def test_decoding_takes_no_more_memory_than_the_dense_tensor_beside_what_it_returns(leaf):
    spec, data = leaves.encode(leaf, Hints())
    leaves.decode(Reader(data), spec, 1 << 24, Hints())  # what the coders keep for all is made here
    tracemalloc.start()
    leaves.decode(Reader(data), spec, 1 << 24, Hints())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = sum(np.asarray(array).nbytes for array in jax.tree.leaves(leaf))
    assert peak <= spec.dense_bytes + result + (1 << 20)


LEAVES = {
    "scalar": lambda: jnp.float32(-0.0),
    "number": lambda: 3,
    "flag": lambda: True,
    "empty": lambda: jnp.zeros((0, 3), jnp.bfloat16),
    "nan": lambda: np.array([0x7FC00001, 0xFF812345, 0x80000000], np.uint32).view(np.float32),
    "bool": lambda: jnp.array([True, False, True]),
    "fp8": lambda: jnp.arange(-4, 4, dtype=jnp.float8_e4m3fn),
    "complex": lambda: jnp.array([1 + 2j, -0.0j], jnp.complex64),
    "ints": lambda: jnp.arange(-300, 300, dtype=jnp.int32).reshape(3, 200),
    "per_channel": lambda: quantize(
        jax.random.normal(jax.random.key(0), (6, 4)), Uniform(bits=3, symmetric=False, channel_axis=-1)
    ),
    "bfloat16_codes": lambda: codebook_leaf(np.random.default_rng(0), (3, 3, 2, 4)).astype(jnp.bfloat16),
    "no_zeros": lambda: codebook_leaf(np.random.default_rng(0), (8, 4), density=1.0),
    "all_zeros": lambda: codebook_leaf(np.random.default_rng(0), (8, 4), density=0.0),
    "empty_sparse": lambda: Sparse.from_dense(jnp.zeros((4, 5))),
    "bfloat16_sparse": lambda: Sparse.from_dense(jnp.eye(5, dtype=jnp.bfloat16)).astype(jnp.float32),
}


def first(variables, x):
    del variables
    return x


@pytest.mark.parametrize("name", LEAVES)
def test_every_kind_of_leaf_comes_back(name, tmp_path):
    leaf = LEAVES[name]()
    save(tmp_path / "m.lepton", first, {"leaf": leaf}, jnp.ones((1, 2)))
    artifact = load(tmp_path / "m.lepton")
    jax.tree.map(assert_same_bits, artifact.packed["leaf"], leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
    assert_same_bits(artifact.variables["leaf"], unpack(leaf) if hasattr(leaf, "dtype") else jnp.asarray(leaf))
    assert account(tmp_path / "m.lepton").total == os.path.getsize(tmp_path / "m.lepton")


@pytest.mark.parametrize("bits", range(2, 9))
def test_quantized_leaves_of_all_widths(bits, tmp_path):
    weight = jax.random.normal(jax.random.key(bits), (40, 30)) * (jax.random.uniform(jax.random.key(1), (40, 30)) < 0.4)
    leaf = quantize(weight, Uniform(bits=bits))
    save(tmp_path / "m.lepton", first, leaf, jnp.ones((1, 2)))
    back = load(tmp_path / "m.lepton")
    assert isinstance(back.packed, QArray)
    assert back.packed.format == leaf.format
    assert_same_bits(back.variables, unpack(leaf))


Point = collections.namedtuple("Point", "z a")


def test_trees_come_back_as_mappings_lists_and_tuples(tmp_path):
    def run(tree, x):
        return {"sum": x + tree["list"][0] + tree["tuple"][1]["in"], "point": Point(tree["point"].z, tree["point"].a)}

    tree = {
        "list": [jnp.float32(1), None, {}],
        "tuple": (jnp.float32(2), {"in": jnp.float32(3)}),
        "point": Point(jnp.float32(5), jnp.float32(6)),
        "ints": {3: jnp.float32(7), 11: jnp.float32(8)},
        "odd/key (": jnp.float32(9),
    }
    save(tmp_path / "m.lepton", run, tree, jnp.zeros((2, 1)))
    artifact = load(tmp_path / "m.lepton")
    expected = {**tree, "point": {"z": 5.0, "a": 6.0}}
    assert jax.tree.map(float, artifact.variables) == jax.tree.map(float, expected)
    outputs = artifact(jnp.zeros((3, 1)))
    assert outputs["sum"].tolist() == [[4.0]] * 3
    assert jax.tree.map(float, outputs["point"]) == (5.0, 6.0)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_linen_convolution_with_batch_statistics(tmp_path):
    x = jax.random.normal(jax.random.key(1), (4, 6, 6, 2))
    variables = Small().init(jax.random.key(0), x)
    save(tmp_path / "m.lepton", Small().apply, variables, x[:1])
    artifact = load(tmp_path / "m.lepton")
    jax.tree.map(assert_same_bits, artifact.variables, variables)
    assert_same_bits(artifact(x), jax.jit(Small().apply)(variables, x))


def test_nnx_state_with_random_keys(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = self.dropout(layer(x))
            return x

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def run(state, x):
        return nnx.merge(graph, state)(x)

    x = jax.random.normal(jax.random.key(2), (5, 3))
    save(tmp_path / "m.lepton", run, state, x)
    artifact = load(tmp_path / "m.lepton")
    assert_same_bits(artifact.variables["layers"][1]["kernel"], state["layers"][1]["kernel"][...])
    assert_same_bits(artifact(x), jax.jit(run)(state, x))


def test_a_fixed_batch_is_recorded_where_the_trace_needs_one(tmp_path):
    def pairs(variables, x):
        return (x.reshape(2, -1) * variables["w"]).sum(1)

    with pytest.warns(FixedBatchWarning, match=r"shapes only.*mod\(3\*b.*axes=\{\}") as found:
        save(tmp_path / "m.lepton", pairs, {"w": jnp.float32(2)}, jnp.ones((4, 3)))
    assert found[0].filename == __file__
    artifact = load(tmp_path / "m.lepton")
    assert artifact.manifest["batch"] == "static"
    assert artifact(jnp.ones((4, 3))).tolist() == [12.0, 12.0]


def test_inputs_may_be_scalars_and_trees(tmp_path):
    save(tmp_path / "m.lepton", lambda v, x, t: v["w"] * x["a"] + t, {"w": jnp.float32(2)}, {"a": jnp.ones((4, 3))}, 1.0)
    artifact = load(tmp_path / "m.lepton")
    assert artifact({"a": jnp.ones((4, 3))}, 1.0).tolist() == [[3.0] * 3] * 4


@pytest.mark.parametrize(
    ("tree", "inputs", "kwargs", "message"),
    [
        ({"a": {"b": "text"}}, (), {}, "cannot save a/b: a leaf must be an array"),
        ({"w": jnp.ones(2)}, (jnp.ones((1, 3)),), {}, "cannot be exported"),
        ({"w": jnp.ones(2)}, (jnp.ones((1, 2)),), {"recipe": {"f": first}}, "must be JSON"),
    ],
)
def test_what_cannot_be_saved_says_why_and_leaves_no_file(tree, inputs, kwargs, message, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        save(tmp_path / "m.lepton", lambda v, *x: v["w"][None] + x[0], tree, *inputs, **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_a_factored_leaf_counts_as_the_dense_one(tmp_path):
    factors = LowRank(jnp.ones((40, 2)), jnp.ones((2, 50)), (40, 50))
    save(tmp_path / "m.lepton", lambda v, x: x @ v["w"], {"w": factors}, jnp.ones((1, 40)))
    figures = account(tmp_path / "m.lepton")
    assert figures.parameters == 2000
    assert figures.dense_bytes == 8000
    assert figures.nonzeros == 180
    assert [tensor.path for tensor in figures.tensors] == ["w/u", "w/v"]


def test_a_first_call_inside_jit_leaves_the_model_usable(tmp_path):
    leaf = quantize(jax.random.normal(jax.random.key(0), (4, 3)), Uniform(bits=4))
    save(tmp_path / "m.lepton", lambda v, x: x @ v["w"], {"w": leaf}, jnp.ones((1, 4)))
    artifact, x = load(tmp_path / "m.lepton"), jnp.ones((2, 4))

    @jax.jit
    def call(x):
        return artifact(x), artifact.variables["w"]

    outputs, weight = call(x)
    assert_same_bits(weight, unpack(leaf))
    assert_same_bits(artifact.variables["w"], unpack(leaf))
    assert_same_bits(artifact(x), outputs)


def test_inputs_of_other_lengths_keep_theirs(tmp_path):
    """One batch for inputs of one length; a table and a scalar beside them do not hold it."""

    def run(v, x, y, table, scale):
        return ((x + y) @ v["w"] + table[None, :]) * scale

    w = {"w": jnp.arange(12.0).reshape(4, 3)}
    save(tmp_path / "m.lepton", run, w, jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones(3), jnp.float32(2))
    artifact = load(tmp_path / "m.lepton")
    assert artifact.manifest["batch"] == "symbolic"
    for batch in (1, 2, 5):
        inputs = (jnp.full((batch, 4), 0.5), jnp.ones((batch, 4)), jnp.arange(3.0), jnp.float32(3))
        assert_same_bits(artifact(*inputs), jax.jit(run)(w, *inputs))


def test_several_batches_of_their_own(tmp_path):
    save(tmp_path / "m.lepton", lambda v, x, y: (x * v, y.sum()), jnp.float32(2), jnp.ones((2, 4)), jnp.ones(3))
    first, second = load(tmp_path / "m.lepton")(jnp.ones((7, 4)), jnp.ones(6))
    assert (first.shape, float(second)) == ((7, 4), 6.0)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((), "0/a: missing; needs float32[b,4]\n  0/t: missing"),
        (({"a": jnp.ones((2, 4)), "t": 1.0}, 3), "1: unknown"),
        (({"a": jnp.ones((2, 5)), "t": 1.0},), "0/a: needs float32[b,4]; got float32[2, 5]"),
        (({"a": jnp.ones((2, 4), int), "t": 1.0},), "0/a: needs float32[b,4]; got int32[2, 4]"),
        (({"a": jnp.ones((0, 4)), "t": 1.0},), "0/a: needs float32[b,4]; got float32[0, 4]"),
        (({"a": jnp.ones(4), "t": 1.0},), "0/a: needs float32[b,4]; got float32[4]"),
    ],
)
def test_wrong_inputs_are_named(inputs, says, tmp_path):
    save(tmp_path / "m.lepton", lambda v, x: x["a"] * v * x["t"], jnp.float32(2), {"a": jnp.ones((1, 4)), "t": 1.0})
    with pytest.raises(ValueError, match="do not fit the program") as caught:
        load(tmp_path / "m.lepton")(*inputs)
    assert says in str(caught.value)
