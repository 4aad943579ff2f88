"""Networks of tensors in files: saved, loaded, run in parts, counted; hostile ones refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import ArtifactError, chain, fake_quant, load, low_rank, pack, prune, save, unpack
from lepton_jax.artifact import structure
from lepton_jax.leaves.cp import CP
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.separable import Separable
from lepton_jax.leaves.tensor_train import TensorTrain
from lepton_jax.leaves.tensor_train_matrix import TensorTrainMatrix
from lepton_jax.leaves.tucker import Tucker
from lepton_jax.native.interpreter import packed


def draw(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


KERNELS = {
    "separable": Separable(draw(3, 2, 2), draw(3, 2, 4), (3, 3, 2, 4)),
    "tucker": Tucker(draw(2, 2), draw(3, 3, 2, 3), draw(3, 4), (3, 3, 2, 4)),
    "cp": CP((draw(3, 3), draw(3, 3), draw(2, 3), draw(4, 3)), (3, 3, 2, 4)),
    "train": TensorTrain((draw(2, 2), draw(2, 3, 2), draw(2, 3, 2), draw(2, 4)), (3, 3, 2, 4)),
    "nested": Tucker(draw(2, 2), draw(3, 3, 2, 3), LowRank(draw(3, 1), draw(1, 4), (3, 4)), (3, 3, 2, 4)),
}
X = draw(2, 5, 5, 2)


def apply(v, x):
    x = jax.lax.conv_general_dilated(x, v["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.mean((1, 2)) @ v["dense"]


@pytest.mark.parametrize("kind", KERNELS)
def test_files_bring_them_back_and_run_them(kind, tmp_path):
    dense = TensorTrainMatrix((draw(2, 3, 2), draw(2, 2, 2)), (4, 6))
    variables = {"conv": KERNELS[kind], "dense": dense if kind == "tucker" else dense.unpack()}
    path = tmp_path / "m.lepton"
    save(path, apply, variables, X, native=True)
    artifact = load(path)
    assert jax.tree.structure(artifact.packed) == jax.tree.structure(variables)
    for one, other in zip(jax.tree.leaves(artifact.packed), jax.tree.leaves(variables)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(artifact(X), jax.jit(apply)(unpack(variables), X))
    np.testing.assert_allclose(artifact.native()(X), jax.jit(packed(apply))(variables, X), rtol=1e-5, atol=1e-6)
    account = artifact.account()
    assert account.total == path.stat().st_size
    assert account.parameters == 72 + 24
    names = [tensor.path for tensor in account.tensors if tensor.path.startswith("conv")]
    expected = {
        "separable": ["conv/first", "conv/second"],
        "cp": [f"conv/factors/{at}" for at in range(4)],
        "train": [f"conv/cores/{at}" for at in range(4)],
        "tucker": ["conv/first", "conv/core", "conv/last"],
        "nested": ["conv/first", "conv/core", "conv/last/u", "conv/last/v"],
    }
    assert names == expected[kind]


def test_pruned_and_quantized_parts(tmp_path):
    from lepton_jax.lowrank import Tucker2

    transform = chain(low_rank((2, 3), method=Tucker2(), select="conv"), prune(0.5), fake_quant(bits=4))
    tree = {"conv": draw(3, 3, 2, 4), "dense": draw(4, 6)}
    variables = jax.jit(lambda tree: pack(transform, *transform.init(tree)))(tree)
    save(tmp_path / "m.lepton", apply, variables, X, native=True)
    artifact = load(tmp_path / "m.lepton")
    assert isinstance(artifact.packed["conv"], Tucker)
    assert artifact.packed["conv"].core.format.bits == 4
    np.testing.assert_array_equal(artifact.variables["conv"], unpack(variables["conv"]))
    np.testing.assert_allclose(artifact.native()(X), artifact(X), rtol=1e-4, atol=1e-5)


SPECS = {  # a description, and the shapes of its parts
    "a shape they do not make": ([5, [3, 3, 2, 5], "3,2,2", "3,2,4"], r"\(3, 2, 2\), \(3, 2, 4\) make no Separable"),
    "ranks that differ": ([5, [3, 3, 2, 4], "3,2,2", "3,3,4"], "do not fit together as xcr, yrn"),
    "stacks that differ": ([5, [2, 3, 3, 2, 4], "2,3,2,2", "3,2,4"], "do not fit together"),
    "too few axes": ([6, [2, 4], "2", "2,3", "3,4"], "make no Tucker|do not fit together"),
    "a core of too many axes": ([6, [3, 3, 3, 3, 2, 4], "2,2", "3,3,3,3,2,3", "3,4"], "make no Tucker"),
    "a core of too few axes": ([6, [2, 4], "2,2", "3", "3,4"], "make no Tucker"),
    "numbers": ([7, [3, 4], "-", "-"], "do not fit together"),
    "empty": ([8, [2, 4], "2,0", "1,4"], "do not fit together"),
    "a chain that breaks": ([9, [4, 6], "2,3,2", "3,2,2"], "do not fit together"),
}


@pytest.mark.parametrize("name", SPECS)
def test_parts_that_make_no_tensor_are_refused(name):
    node, message = SPECS[name]
    shapes = [() if text == "-" else tuple(map(int, text.split(","))) for _, text in structure.leaf_texts(node)]
    with pytest.raises(ArtifactError, match=message):
        structure.rebuild(node, iter([jnp.zeros(shape) for shape in shapes]))


@pytest.mark.parametrize(
    "node",
    [
        [5, [3, 3, 2, 4], "3,2,2"],
        [6, [2, 4], "2", "2", "2", "2"],
        [7, [2], *["2,1"] * 6],
        [9, [2, 2], *["1,1"] * 14],
        [8, "shape", "2,2", "2,2"],
        [11, [2, 2], "2,2", "2,2"],
        [5.0, [2, 2], "2,2", "2,2"],
    ],
    ids=lambda node: f"{node[0]} of {len(node) - 2}",
)
def test_damaged_descriptions_are_refused(node):
    with pytest.raises(ArtifactError, match="the tree is damaged at its root"):
        list(structure.leaf_texts(node))


def test_parts_that_are_no_arrays_are_refused():
    with pytest.raises(ArtifactError, match=r"the parts of a CP of shape .* are no arrays"):
        structure.rebuild([7, [2, 2], {}, "2,2"], iter([jnp.zeros((2, 2))]))


def test_a_small_file_of_a_huge_tensor_is_refused_unless_trusted(tmp_path):
    """Four vectors that make 40 GB: it takes room only where it is unpacked, and there by surprise."""
    huge = CP(tuple(jnp.zeros((n, 1)) for n in (100, 100, 1000, 1000)), (100, 100, 1000, 1000))
    save(tmp_path / "m.lepton", lambda v, x: x @ v["b"], {"w": huge, "b": jnp.eye(2)}, jnp.ones((1, 2)))
    with pytest.raises(ArtifactError, match="a factored tensor of 40000000000 bytes as a dense one declared, more than the"):
        load(tmp_path / "m.lepton")
    assert load(tmp_path / "m.lepton", max_bytes=10**11).packed["w"].shape == huge.shape
