"""Names of leaves."""

import jax.numpy as jnp
import pytest
from flax import nnx

from lepton_jax.core import paths
from lepton_jax.leaves.low_rank import LowRank

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
