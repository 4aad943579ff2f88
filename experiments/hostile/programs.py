"""Hostile programs in `.lepton` files: those of honest models, with their envelope or their module changed.

What deserialises is run; that must be done in a process with limits, see `apart`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from experiments.hostile.changes import edited
from lepton_jax.artifact import container, load, save

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
NAMES = (
    *(b"xla_python_cpu_callback", b"xla_ffi_python_cpu_callback", b"lapack_sgesdd_ffi", b"lapack_ssyevd_ffi", b"Sharding"),
    *(b"stablehlo.infeed", b"stablehlo.custom_call", b"stablehlo.while", b"stablehlo.gather", b"main", b"call_target_name"),
)
"""What may stand in place of a name."""


class Whole(NamedTuple):
    """A good file, in parts."""

    manifest: bytes
    program: bytes
    tensors: bytes


def _models() -> dict[str, tuple[Callable[..., Any], Any]]:
    square = jnp.asarray(np.eye(4) + 0.1, jnp.float32)
    return {
        "dense": (lambda v, x: jax.nn.relu(x @ v["w"]), {"w": square}),
        "algebra": (lambda v, x: jnp.linalg.solve(v["w"] @ v["w"].T + jnp.eye(4), x.T), {"w": square}),
        "loop": (lambda v, x: jax.lax.fori_loop(0, 3, lambda _, c: jnp.tanh(c @ v["w"]), x), {"w": square}),
        "sorted": (lambda v, x: (jnp.sort(x, axis=1), jax.lax.top_k(x + v["w"][:1], 2)), {"w": square}),
        "random": (lambda v, x: x + jax.random.normal(jax.random.key(0), x.shape) * v["w"][:1], {"w": square}),
        "rows": (lambda v, x: v["w"][jnp.argmax(x, axis=1)] + jnp.fft.fft(x).real, {"w": square}),
    }


@functools.cache
def wholes() -> list[Whole]:
    """Good files of small models, their programs of several kinds."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.lepton")
        for apply, variables in _models().values():
            save(path, apply, variables, X)
            sections = container.parse(path.read_bytes(), "good").sections
            found.append(Whole(*(sections[name].data for name in ("manifest", "program", "tensors"))))
    return found


@functools.cache
def _exported(which: int) -> export.Exported:
    return export.deserialize(bytearray(wholes()[which].program))


def _with_module(which: int, module: bytes) -> bytes:
    return bytes(dataclasses.replace(_exported(which), mlir_module_serialized=module).serialize())


def _renamed(module: bytes, rng: np.random.Generator) -> bytes:
    """One name of a module in another's place, as long as it was."""
    found = list(re.finditer(rb"[\w.]{6,60}\0", module))
    place = found[rng.integers(len(found))]
    name = NAMES[rng.integers(len(NAMES))][: len(place[0]) - 1]
    return module[: place.start()] + name.ljust(len(place[0]) - 1, b"_") + b"\0" + module[place.end() :]


def hostile_program(rng: np.random.Generator) -> tuple[str, bytes]:
    """(what was done, a file with a changed program under right checksums)."""
    which, other = (int(n) for n in rng.integers(0, len(wholes()), 2))
    whole, module = wholes()[which], _exported(which).mlir_module_serialized
    what = ("envelope", "module", "module", "names", "text", "other module", "other program", "cut")[rng.integers(8)]
    if what == "envelope":
        program = edited(whole.program, rng)
    elif what == "module":
        program = _with_module(which, edited(module, rng))
    elif what == "names":
        program = _with_module(which, _renamed(module, rng))
    elif what == "text":
        text = str(_exported(which).mlir_module()).encode()
        program = _with_module(which, edited(text, rng) if rng.random() < 0.5 else text)
    elif what == "other module":
        program = _with_module(which, _exported(other).mlir_module_serialized)
    elif what == "other program":
        program = wholes()[other].program
    else:
        program = whole.program[: rng.integers(len(whole.program))]
    return f"program: {what}", container.build(whole.manifest, program, whole.tensors)


def execute(path: Path) -> list[Any]:
    """Load a file and run its program."""
    return jax.tree.leaves(jax.block_until_ready(load(path)(X)))
