"""Tables as text, and what made their figures."""

import os
import subprocess
import sys

import jax

from experiments.common.cli import ROOT


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Return the cells as lines of one width a column.

    Example:
      >>> aligned([("a", "bb"), ("ccc", "d")])
      ['a    bb', 'ccc   d']
    """
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]) for line in lines]


def provenance(revisions: set[str], script: str = "deep_compression") -> str:
    """Say what made the figures: command, revisions of the code, versions and cores.

    Args:
      revisions: of the code, from `revision`.
      script: which experiment.
    """
    options = sys.argv[1:]
    for name, values in (("--resume", 0), ("--run-dir", 1)):
        if name in options:
            del options[options.index(name) : options.index(name) + values + 1]
    command = " ".join([f"python -m experiments.{script}", *options])
    code = ", ".join(sorted(revisions))
    return f"Command: `{command}`. Revision {code}, jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores."


def revision() -> str:
    """Return the revision of the code that runs, as git has it."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def markdown_table(lines: list[tuple[str, ...]]) -> list[str]:
    """Return the cells as lines of a Markdown table, its header first."""
    cells = ["| " + " | ".join(line) + " |" for line in lines]
    return [cells[0], "|" + " --- |" * len(lines[0]), *cells[1:]]
