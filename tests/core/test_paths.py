"""Names of leaves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lepton_jax import cast, fake_quant, low_rank, prune
from lepton_jax.core import paths
from lepton_jax.core.packed import is_packed
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import dora, lora, qlora, reduce_rank
from lepton_jax.pruning.allocation import Explicit, erk
from lepton_jax.pruning.sparse_training import ac_dc, dynamic_surgery, rigl, set_, soft_threshold
from lepton_jax.quantization import BitSchedule, Codebook, dorefa, lsq, scheduled_quant, stochastic_quant

KEY = jax.random.key(0)

TREE = {"b": [jnp.ones((2, 2)), (jnp.ones(3),)], "a": {"kernel": jnp.ones((2, 3)), "step": jnp.int32(1)}}


def test_flatten_is_in_the_trees_order() -> None:
    assert list(paths.flatten(TREE)) == ["a/kernel", "a/step", "b/0", "b/1/0"]
    assert list(paths.flatten(jnp.ones(2))) == [""]


def test_nnx_and_linen_leaves_have_like_names() -> None:
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert sorted(paths.flatten(state)) == ["bias", "kernel"]
    assert list(paths.select(state, "kernel")) == ["kernel"]


def test_factors_are_leaves_of_their_own() -> None:
    tree = {"kernel": LowRank(jnp.ones((2, 1)), jnp.ones((1, 3)), (2, 3))}
    assert list(paths.flatten(tree)) == ["kernel/u", "kernel/v"]


def test_replace_passes_over_what_is_not_there() -> None:
    new = paths.replace(TREE, {"b/1/0": "new", "c": 1})
    assert new["b"][1] == ("new",)
    assert new["a"]["kernel"] is TREE["a"]["kernel"]


def test_select() -> None:
    assert list(paths.select(TREE, "*")) == ["a/kernel", "b/0", "b/1/0"], "an integer is not selected"
    assert list(paths.select(TREE, ("a/*", "b/0"))) == ["a/kernel", "b/0"]
    assert list(paths.select(TREE, paths.matrices)) == ["a/kernel", "b/0"]
    assert list(paths.select(TREE, lambda path, leaf: leaf.ndim == 1)) == ["b/1/0"]


@pytest.mark.parametrize("pattern", ["*/kernle", ("a/*", "c/*"), (), "a/step", "A/kernel"], ids=str)
def test_a_pattern_that_matches_nothing_lists_the_paths(pattern: object) -> None:
    with pytest.raises(ValueError, match=r"matches no floating leaf. The floating leaves are: a/kernel, b/0, b/1/0"):
        paths.select(TREE, pattern)


def test_a_predicate_is_named() -> None:
    with pytest.raises(ValueError, match=r"select='matrices' matches no floating leaf. The floating leaves are: bias"):
        paths.select({"bias": jnp.ones(3)}, paths.matrices)


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="same path: a/b"):
        paths.flatten({"a/b": 1, "a": {"b": 2}, "c": 3})


def test_every_pattern_of_a_list_must_match() -> None:
    assert list(paths.select(TREE, ["a/*", "b/0"])) == ["a/kernel", "b/0"]
    with pytest.raises(ValueError, match=r"'c/\*' matches no floating leaf"):
        paths.select(TREE, ["a/*", "c/*"])


ODD = {"w[1]": jnp.ones((2, 2)), "w1": jnp.ones((2, 2)), "a*": jnp.ones((2, 2)), "ab": jnp.ones((2, 2)), "n[0]": jnp.int32(1)}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("w[1]", ["w[1]"]), ("a*", ["a*"]), ("w[12]", ["w1"]), (("w?", "a*"), ["a*", "w1"]), ("?*", ["a*", "ab", "w1", "w[1]"])],
)
def test_a_path_is_itself_before_it_is_a_glob(pattern: object, found: list[str]) -> None:
    assert list(paths.select(ODD, pattern)) == found
    pruned = prune(0.5, select=pattern).init(ODD)[1].masks
    shown = cast("bfloat16", select=pattern).view(ODD, ())
    rounded = fake_quant(2, select=pattern).pack(ODD, ())
    assert sorted(pruned) == [path for path, leaf in shown.items() if leaf.dtype == jnp.bfloat16] == found
    assert [path for path, leaf in rounded.items() if is_packed(leaf)] == found


def test_the_path_of_a_leaf_that_is_not_floating_selects_no_other() -> None:
    with pytest.raises(ValueError, match=r"select='n\[0\]' matches no floating leaf"):
        paths.select(ODD | {"n0": jnp.ones((2, 2))}, "n[0]")


def test_the_paths_of_a_report_select_its_leaves() -> None:
    tree = {"layer[0]": {"kernel": jnp.ones((6, 4))}, "layer0": {"kernel": jnp.ones((6, 4))}}
    chosen = tuple(path for path in paths.flatten(tree) if "[" in path)
    assert list(low_rank(1, select=chosen).init(tree)[0]["layer[0]"]["kernel"].u.shape) == [6, 1]
    assert list(paths.select(tree, chosen)) == ["layer[0]/kernel"]
    assert erk({path: leaf.shape for path, leaf in paths.flatten(tree).items()}, 0.4, dense=chosen)[
        "layer0/kernel"
    ] == pytest.approx(0.8)
    assert Explicit(sparsities={"layer[0]/kernel": 0.25, "*": 0.75})(dict.fromkeys(paths.flatten(tree), (8,)), 0.5) == {
        "layer0/kernel": 0.75,
        "layer[0]/kernel": 0.25,
    }


@pytest.mark.parametrize("wrong", [3, None, ("a", 3), [None], b"a"], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda select: ac_dc(0.5, begin=0, end=4, compressed=1, dense=1, select=select),
        lambda select: cast("bfloat16", select=select),
        lambda select: dorefa(3, select=select),
        lambda select: dynamic_surgery(0.0, KEY, end=3, select=select),
        lambda select: fake_quant(4, select=select),
        lambda select: fake_quant(Codebook(bits=2), select=select),
        lambda select: lora(1, KEY, select=select),
        lambda select: dora(1, KEY, train=select),
        lambda select: qlora(1, KEY, select=select),
        lambda select: low_rank(1, select=select),
        lambda select: reduce_rank(2, 0.5, select=select),
        lambda select: lsq(3, select=select),
        lambda select: prune(0.5, select=select),
        lambda select: rigl(0.5, KEY, end=3, select=select),
        lambda select: set_(0.5, KEY, end=3, select=select),
        lambda select: scheduled_quant(BitSchedule(begin=(1,), bits=(4,)), select=select),
        lambda select: soft_threshold(select=select),
        lambda select: stochastic_quant(4, KEY, select=select),
        lambda select: paths.select(ODD, select),
    ],
)
def test_a_selector_of_the_wrong_kind_is_refused_when_it_is_given(make: Callable, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"(select|train) must be a glob over paths such as '\*/kernel', several") as error:
        make(wrong)
    assert "\n" not in str(error.value)
