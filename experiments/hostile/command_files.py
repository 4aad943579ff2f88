"""What the command line makes of hostile files: a clear end, and a few lines that move no cursor."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostile import foreign_files, lepton_files
from lepton_jax.command_line import main

_CODES, _LONGEST = (0, 1, 2), 20_000


def run_commands(*commands: list[Any]) -> list[Any]:
    """Run commands.

    Raises:
      AssertionError: for one that ends otherwise than it may, or says what it must not.
    """
    for words in commands:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([str(word) for word in words])
        said = out.getvalue()
        if code not in _CODES or not said.replace("\n", "").isprintable() or len(said) > _LONGEST:
            raise AssertionError(f"{words[0]} ended with {code} and said {said[:300]!r}")
    return []


def of_weights(path: Path) -> list[Any]:
    """Compare, convert and inspect a file of weights."""
    good = path.with_name(f"good{path.suffix}")
    good.write_bytes(foreign_files.saved(path.suffix))
    return run_commands(["diff", path, good], ["convert", path, path.with_name("out.npz")], ["inspect", path])


def of_models(path: Path) -> list[Any]:
    """Compare, unpack, inspect and verify a `.lepton` file."""
    good = path.with_name("good.lepton")
    good.write_bytes(lepton_files.good_files()[0].file)
    return run_commands(
        ["diff", path, good], ["unpack", path, path.with_name("out.npz")], ["inspect", path, "--json"], ["verify", path]
    )


def running(path: Path) -> list[Any]:
    """Run a `.lepton` file's program on the inputs beside it, and write what it gives."""
    return run_commands(["run", path, "--input", path.with_name("x.npy"), "--output", path.with_name("y.npz")])


def inputs(rng: np.random.Generator, path: Path) -> None:
    """Write inputs for `running`: mostly good ones."""
    body = io.BytesIO()
    np.save(body, rng.normal(size=(2, 4)).astype(np.float32))
    data = body.getvalue()
    if rng.random() < 0.3:
        data = foreign_files.changed_array(data, rng)
    path.with_name("x.npy").write_bytes(data)
