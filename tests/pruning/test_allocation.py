"""Allocations: what each leaf loses."""

import pytest

from lepton_jax.pruning.allocation import uniform


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.999])
def test_uniform(sparsity: float) -> None:
    shapes = {"a/kernel": (3, 4), "b": (5,), "empty": (0, 2)}
    assert uniform(shapes, sparsity) == {"a/kernel": sparsity, "b": sparsity, "empty": sparsity}
    assert list(uniform(shapes, sparsity)) == list(shapes)
    assert uniform({}, sparsity) == {}
