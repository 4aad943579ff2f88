"""Loaded programs and models do otherwise what XLA on CPU is slow at; files hold the program as it was written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax import Model, graph, load, load_model, save
from lepton_jax.core.errors import ArtifactError


class Slow(nn.Module):
    """Depthwise channels, a pool, and a kernel that is larger than its image."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=3)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.relu(nn.Conv(5, (3, 3))(x)).mean((1, 2))


@pytest.fixture(scope="module")
def made() -> Any:
    rng = np.random.default_rng()
    x = jnp.asarray(rng.standard_normal((3, 4, 4, 3)), jnp.float32)
    return Slow().init(jax.random.key(int(rng.integers(1000))), x), x


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_file_and_a_model_give_the_bits_of_the_fast_function(made: Any, tmp_path: Path) -> None:
    variables, x = made
    model = Model(Slow().apply, variables, (x[:1],))
    model.save(tmp_path / "m.lepton")
    file, again = load(tmp_path / "m.lepton", lowering=True), load_model(tmp_path / "m.lepton")
    for batch in (x[:1], x):
        fast = jax.jit(graph.fast_lowering(Slow().apply))(variables, batch)
        for ours in (model(batch), file(batch), again(batch)):
            same(ours, fast)
        np.testing.assert_allclose(fast, jax.jit(Slow().apply)(variables, batch), rtol=1e-5, atol=1e-6)


def test_the_option_leaves_all_as_it_was(made: Any, tmp_path: Path) -> None:
    variables, x = made
    save(tmp_path / "m.lepton", Slow().apply, variables, x)
    plain = jax.jit(Slow().apply)(variables, x)
    same(load(tmp_path / "m.lepton")(x), plain)
    same(load_model(tmp_path / "m.lepton", lowering=False)(x), plain)
    same(Model(Slow().apply, variables, lowering=False)(x), plain)


def test_the_fast_program_is_what_runs(made: Any, tmp_path: Path) -> None:
    variables, x = made
    save(tmp_path / "m.lepton", Slow().apply, variables, x)
    for lowering in (True, False):
        file = load(tmp_path / "m.lepton", lowering=lowering)
        compiled = jax.jit(lambda x, file=file: file(x)).lower(x).compile().as_text()
        assert ("feature_group_count" in compiled) is not lowering


def test_files_and_what_is_made_of_them_hold_the_program_as_written(made: Any, tmp_path: Path) -> None:
    variables, x = made
    save(tmp_path / "m.lepton", Slow().apply, variables, x)
    file = load(tmp_path / "m.lepton", lowering=True)
    file(x)
    save(tmp_path / "again.lepton", file.apply, file.packed, x)
    again = load(tmp_path / "again.lepton", lowering=True)
    same(again(x), file(x))
    same(load(tmp_path / "again.lepton", lowering=False)(x), load(tmp_path / "m.lepton", lowering=False)(x))
    assert "fast_lowering" not in str(jax.make_jaxpr(file.apply)(variables, x))


def test_mapped_and_refused_as_before(made: Any, tmp_path: Path) -> None:
    variables, x = made
    save(tmp_path / "m.lepton", Slow().apply, variables, x)
    file = load(tmp_path / "m.lepton", lowering=True)
    np.testing.assert_allclose(jax.vmap(file)(x[:, None])[:, 0], file(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ArtifactError, match="no derivative"):
        jax.grad(lambda x: file(x).sum())(x)
    with pytest.raises(ValueError, match="float32"):
        file(x[..., :2])


def test_lengths_keep_to_what_was_said(tmp_path: Path) -> None:
    kernel = jnp.ones((3, 1, 2))

    def apply(kernel: Any, x: Any) -> Any:
        numbers = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers, feature_group_count=2).sum(1)

    x = jnp.ones((2, 8, 2))
    save(tmp_path / "m.lepton", apply, kernel, x, axes={1: "time"}, constraints=("time <= 16",))
    file = load(tmp_path / "m.lepton", lowering=True)
    np.testing.assert_allclose(file(jnp.ones((2, 16, 2))), apply(kernel, jnp.ones((2, 16, 2))), rtol=1e-6)
    with pytest.raises(ValueError, match="time <= 16"):
        file(jnp.ones((2, 17, 2)))


def test_a_program_that_is_not_known_operation_by_operation_runs_as_it_is(made: Any, tmp_path: Path) -> None:
    def apply(variables: Any, x: Any) -> Any:
        out = Slow().apply(variables, x)
        return out, jnp.linalg.eigh(out.T @ out)[0]

    variables, x = made
    save(tmp_path / "m.lepton", apply, variables, x)
    for ours, theirs in zip(load(tmp_path / "m.lepton", lowering=True)(x), jax.jit(apply)(variables, x), strict=True):
        same(ours, theirs)
