"""Which version it is, said alike everywhere."""

import tomllib
from pathlib import Path

import pytest

import lepton_jax
from lepton_jax.command_line import main

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert lepton_jax.__version__ == project["project"]["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lepton_jax {lepton_jax.__version__}\n"


def test_types_are_part_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["lepton_jax"]
    assert (ROOT / "lepton_jax" / "py.typed").is_file()
