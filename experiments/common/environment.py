"""What a run was made with: code, versions, machine, command line, seeds."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from experiments.common.tables import command, revision
from lepton_jax.core.files import read_json, write_json

FILE = "environment.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(seeds: Sequence[int]) -> dict[str, Any]:
    """Return what this process runs with, as JSON-able data; nothing in it names the machine or a path on it.

    Args:
      seeds: of the run.

    Example:
      >>> made = environment([0, 1])
      >>> made["seeds"], sorted(made["packages"])[:2], made["cores"] >= 1
      ([0, 1], ['flax', 'jax'], True)
    """
    code, dash, _ = revision().partition("-dirty")
    return {
        "revision": code,
        "dirty": None if code == "unknown" else bool(dash),
        "command": command(),
        "seeds": list(seeds),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def record(path: Path, seeds: Sequence[int]) -> None:
    """Write what this process runs with; if the file is there, the run is resumed, and this one goes behind the first.

    Args:
      path: of the file; the later ones are its list "resumed".
      seeds: of the run.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / FILE
      >>> record(path, [0]), record(path, [0])
      (None, None)
      >>> len(read_json(path, "")["resumed"])
      1
    """
    made = environment(seeds)
    if path.exists():
        first = read_json(path, "Delete it: the run does not need it to go on.")
        made = {**first, "resumed": [*first.get("resumed", []), made]}
    write_json(path, made)
