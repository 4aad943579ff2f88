"""Files of 64-bit numbers, read where jax has none: the error says what to do; and a console without all letters."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax
from lepton_jax.artifact.inputs import wide
from lepton_jax.command_line import main


@pytest.fixture
def wide_file(tmp_path):
    with jax.enable_x64(True):
        variables = {"w": jnp.ones((3, 2), jnp.float64)}
        lepton_jax.save(tmp_path / "wide.lepton", lambda v, x: x @ v["w"], variables, jnp.ones((2, 3)))
    return tmp_path / "wide.lepton"


def test_the_error_names_the_setting(wide_file):
    loaded = lepton_jax.load(wide_file)
    for call in (lambda: loaded(np.ones((2, 3))), lambda: loaded.apply(loaded.variables, np.ones((2, 3)))):
        with pytest.raises(ValueError, match="jax_enable_x64"):
            call()
    with jax.enable_x64(True):
        assert wide(jnp.float64) == ""
        np.testing.assert_array_equal(lepton_jax.load(wide_file)(jnp.ones((2, 3))), np.full((2, 2), 3.0))


def test_inspect_says_what_the_program_takes(wide_file, capsys):
    assert main(["inspect", str(wide_file)]) == 0
    assert "inputs: {'0': 'float64[b,3]'}" in capsys.readouterr().out
    assert lepton_jax.load(wide_file).inputs == {"0": "float64[b,3]"}


def test_a_console_of_few_letters(tmp_path):
    path = tmp_path / "größe.lepton"
    lepton_jax.save(path, lambda v, x: x * v["größe"], {"größe": jnp.ones(())}, jnp.ones((2, 3)))
    code = "import sys; from lepton_jax.command_line import main; sys.argv[1:] = sys.argv[1:]; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(path)],
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe" in io.TextIOWrapper(io.BytesIO(done.stdout), "ascii").read()
