"""Read the command line, run one command, and end with one clear line if something is wrong."""

import contextlib
import functools
import inspect
import io
import operator
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

import lepton_jax
from lepton_jax.artifact import ArtifactError
from lepton_jax.command_line.bench import Bench
from lepton_jax.command_line.console import DIFFERENT, INTERRUPTED, WRONG_USAGE, Command
from lepton_jax.command_line.convert import Convert
from lepton_jax.command_line.deploy import Deploy
from lepton_jax.command_line.diff import Diff
from lepton_jax.command_line.edge import Edge
from lepton_jax.command_line.inspect import Inspect
from lepton_jax.command_line.plan_memory import PlanMemory
from lepton_jax.command_line.run import Run
from lepton_jax.command_line.tune import Tune
from lepton_jax.command_line.unpack import Unpack
from lepton_jax.command_line.verify import Verify
from lepton_jax.core.arguments import checked
from lepton_jax.core.foreign_text import shown

_DESCRIPTION = """Look into `.lepton` files, verify, unpack, compare, convert, run, deploy, measure and compress them;
plan the memory of trainings.

Exit codes: 0 all is well; 1 files differ or a file is damaged; 2 wrong usage, or a file cannot be found or written.
Results go to the output stream, progress and errors to the error stream. `lepton COMMAND --help` shows examples."""

_LONGEST_LINE = 4000
_KINDS = (Inspect, Verify, Unpack, Diff, Run, Convert, Deploy, Edge, Bench, Tune, PlanMemory)
_COMMANDS = {re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower(): kind for kind in _KINDS}


@checked
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the words after ``lepton``; None: those of the process.

    Returns:
      the exit code: 0 all is well; 1 files differ or a file is damaged; 2 wrong usage, or a file cannot be found or written.

    Example:
      >>> main(["unpack", "weights.pt", "weights.npz"])
      2
    """
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr) if argv is None else ():
        if isinstance(stream, io.TextIOWrapper):  # a console that has not all letters shows how they are written
            stream.reconfigure(errors="backslashreplace")
    if list(words) == ["--version"]:
        print(f"lepton_jax {lepton_jax.__version__}")
        return 0
    try:
        command = _parse(words)
        if argv is None and not isinstance(command, Run | Bench | Edge | Tune):
            jax.config.update("jax_platforms", "cpu")  # only running needs a device: leave it to others
        return command()
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted; no file was changed", INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ArtifactError as error:
        return _fail(str(error), WRONG_USAGE if isinstance(error.__cause__, OSError) else DIFFERENT)
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        return _fail(str(error), WRONG_USAGE)


def _fail(message: str, code: int) -> int:
    head, *lines = [line.strip() for line in message.split("\n")]
    print(shown(f"lepton: {head} {'; '.join(lines)}".rstrip(), _LONGEST_LINE), file=sys.stderr)
    return code


def _parse(words: Sequence[str]) -> Command:
    """Read the words.

    Raises:
      ValueError: for what tyro refuses, its box of several lines made one.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if words and words[0] in _COMMANDS:
                kind = _COMMANDS[words[0]]
                return _read(kind, f"lepton {words[0]}", inspect.getdoc(kind) or "", words[1:])
            brief = [
                Annotated[kind, tyro.conf.subcommand(name, description=(kind.__doc__ or "").splitlines()[0])]
                for name, kind in _COMMANDS.items()
            ]
            return _read(functools.reduce(operator.or_, brief), "lepton", _DESCRIPTION, words)
    except SystemExit as stop:
        if not stop.code:
            raise
        inner = "\n".join(line for line in said.getvalue().splitlines() if not line.startswith("\u256d"))  # without the title
        text = " ".join(re.sub(r"[\u2500-\u257f]", " ", inner).split())  # and the lines of the box
        raise ValueError(text) from None


def _read(kind: Any, prog: str, description: str, words: Sequence[str]) -> Any:
    return tyro.cli(kind, prog=prog, description=description, args=list(words), config=(tyro.conf.FlagCreatePairsOff,))
