"""A stranger's module, read and written again by a process of its own, so that damaged bytes cannot harm this one.

The reader of MLIR's bytecode trusts its bytes: some that are damaged, or made so, write beyond its memory. So they are first
read where that does no harm, and what this process reads are the bytes which that one wrote.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jaxlib

from lepton_jax.core.errors import ArtifactError, one_line

_SECONDS, _MEMORY = 20, 4 << 30
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, sdy, stablehlo
context = ir.Context()
for dialect in (chlo, sdy, stablehlo):
    dialect.register_dialect(context)
with context:
    try:
        module = _jax.mlir.deserialize_portable_artifact(sys.stdin.buffer.read())
        data = _jax.mlir.serialize_portable_artifact(module, stablehlo.get_current_version())
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}")
        sys.exit(3)
sys.stdout.buffer.write(data)
"""
_REFUSED = 3


@functools.lru_cache(maxsize=64)
def read_apart(module: bytes) -> bytes:
    """Return a module as MLIR itself writes it, after a process of its own has read it; a fifth of a second.

    Args:
      module: a StableHLO portable artifact, of whoever wrote it.

    Raises:
      ArtifactError: if it cannot be read; also if reading it ends the process, or takes too long or too much memory.

    Example:
      >>> read_apart(b"no module")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: the program cannot be read: ...
    """
    packages = os.path.dirname(os.path.dirname(os.path.abspath(jaxlib.__file__)))
    command = [sys.executable, "-I", "-c", _CHILD, packages, str(_SECONDS), str(_MEMORY)]
    try:
        done = subprocess.run(command, input=module, capture_output=True, timeout=10 * _SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArtifactError(f"the program cannot be read in a process of its own: {one_line(error, 200)}") from error
    if done.returncode == _REFUSED:
        raise ArtifactError(f"the program cannot be read: {one_line(_last(done.stderr))}")
    if done.returncode or not done.stdout:
        raise ArtifactError("the program is damaged: reading it ended the process that tried, which no honest one does")
    return done.stdout


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"
