"""Tables as text, and what made their figures."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax

from experiments.common.cli import ROOT

Lines = list[tuple[str, ...]]
"""The cells of a table, its header first."""


def aligned(lines: Lines) -> list[str]:
    """Return the cells as lines of one width a column.

    Example:
      >>> aligned([("a", "bb"), ("ccc", "d")])
      ['a    bb', 'ccc   d']
    """
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]) for line in lines]


def provenance(revisions: set[str], script: str | None = "deep_compression") -> str:
    """Say what made the figures: command, revisions of the code, versions and cores.

    Args:
      revisions: of the code, from `revision`.
      script: which experiment; None: as the command line has it.
    """
    said = command(script and f"experiments.{script}", without={"--resume": 0, "--run-dir": 1})
    code = ", ".join(sorted(revisions))
    return f"Command: `{said}`. Revision {code}, jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores."


def command(module: str | None = None, *, without: Mapping[str, int] = MappingProxyType({})) -> str:
    """Return the command line of this process, with no path that only this machine has.

    Paths in the repository are written from its root; of others only the last name is left.

    Args:
      module: what was run; by default as the command line has it.
      without: options that are left out, and how many values follow them.
    """
    program, *options = sys.argv
    for name, values in without.items():
        options = [option for option in options if not option.startswith(f"{name}=")]
        while name in options:
            del options[options.index(name) : options.index(name) + values + 1]
    module = module or _portable(program).removesuffix(".py").replace("/", ".")
    return " ".join(["python -m", module, *(shlex.quote(_portable(option)) for option in options)])


def _portable(option: str) -> str:
    """Shorten an absolute path, which may stand behind ``--name=``."""
    name, equals, value = option.rpartition("=")
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return f"{name}{equals}{value}"


@functools.cache
def revision() -> str:
    """Return the revision of the code that runs, as git has it; "unknown" without git.

    Git is asked once, when the run's folder is claimed: the files may change while a program runs, but not the program.
    """
    if shutil.which("git") is None:
        return "unknown"
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def markdown_table(lines: Lines) -> list[str]:
    """Return the cells as lines of a Markdown table, its header first.

    Example:
      >>> markdown_table([("a", "b"), ("1", "x|y")])
      ['| a | b |', '| --- | --- |', '| 1 | x\\\\|y |']
    """
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return [cells[0], "|" + " --- |" * len(lines[0]), *cells[1:]]
