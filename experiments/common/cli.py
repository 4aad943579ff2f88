"""The command line of all experiments: a config file, overrides of its fields, and errors in one line."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro

from experiments.common import processes
from experiments.common.config import Config, load_config
from experiments.common.writers import Place, check
from lepton_jax.artifact import ArtifactError
from lepton_jax.training.interrupt import Terminated, terminated_by_signal

ROOT = Path(__file__).parents[2]
_EXIT_INTERRUPTED = 130
Setting = TypeVar("Setting", bound=Any)
"""A config's class: a dataclass with a name and a seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Generic[Setting]):
    """What every experiment takes."""

    config: Path
    """The config file."""
    run_dir: Path | None = None
    """Where results go; by default runs/NAME-seedN, or runs/NAME for several seeds."""
    resume: bool = False
    """Go on with an interrupted run of the same config, to the same result."""
    seeds: int = 1
    """Run so many seeds, from the config's seed on, and report their mean and standard deviation."""
    processes: int = 1
    """Train by so many processes as one run: started on this machine, or joined if JAX_PROCESS_ID says which this is."""
    traceback: bool = False
    """Show where in the code an error arose."""
    setting: Annotated[Setting, tyro.conf.arg(name="")]
    """Fields of the config, each of which can be overridden."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1; got {self.seeds}.")

    @property
    def folder(self) -> Path:
        """Where results go; with several seeds, each has a folder in it."""
        alone = "" if self.seeds > 1 else f"-seed{self.setting.seed}"
        return self.run_dir or Path("runs") / f"{self.setting.name}{alone}"

    @property
    def runs(self) -> list[tuple[Setting, Path]]:
        """The config and the folder of each seed."""
        if self.seeds == 1:
            return [(self.setting, self.folder)]
        seeds = range(self.setting.seed, self.setting.seed + self.seeds)
        return [(dataclasses.replace(self.setting, seed=seed), self.folder / f"seed{seed}") for seed in seeds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedOptions(Options[Setting]):
    """What experiments take that log as they train."""

    writers: tuple[Place, ...] = ()
    """Where metrics go besides the run folder's metrics.jsonl; each is an extra of the package."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.writers)


def run(
    main: Callable[[Any], None],
    *,
    default_config: str,
    description: str | None,
    kind: type[Setting] = Config,  # type: ignore[assignment]
    options: type[Options[Any]] = Options,
) -> None:
    """Parse the command line and call `main`; end with one clear line if something is wrong.

    Args:
      main: the experiment.
      default_config: name of a file in `configs/`.
      description: shown by ``--help``, with examples.
      kind: the class of its configs.
      options: what it takes besides the config's fields.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=ROOT / "configs" / default_config)
    first.add_argument("--processes", type=_whole, default=1)
    known = first.parse_known_args()[0]
    path, traceback = known.config, "--traceback" in sys.argv
    with processes.ended_together(), errors_in_one_line(traceback=traceback), terminated_by_signal():
        try:
            processes.join(known.processes)
            setting = load_config(path, kind)
            said = _parse(options(config=path, setting=setting), options[type(setting)], description)  # type: ignore
            _cache_compilations()
            main(said)
        except (KeyboardInterrupt, Terminated) as error:
            print(f"\n{str(error) or 'interrupted'}\nGo on with the same command and --resume.", file=sys.stderr)
            sys.exit(error.code if isinstance(error, Terminated) else _EXIT_INTERRUPTED)


@contextlib.contextmanager
def errors_in_one_line(*, traceback: bool = False) -> Iterator[None]:
    """End the process with one clear line if something that a user can mend is wrong.

    Args:
      traceback: raise instead.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError, ArtifactError) as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _parse(default: Options[Setting], options: Any, description: str | None) -> Options[Setting]:
    """Read the command line over the config's own values.

    Raises:
      ValueError: for what tyro refuses, its box of several lines made one.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, default=default, description=description, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[\u2500-\u257f]", " ", said.getvalue()).split()  # without the lines of the box
        raise ValueError(" ".join(words)) from None


def _whole(word: str) -> int:
    """Read a number of processes; of what is none, 1, and the whole command line's reader will say so."""
    return int(word) if word.isdecimal() else 1


def _cache_compilations() -> None:
    """Keep compiled programs between runs, unless the user has said where (or that not)."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("LEPTON_CACHE", Path.home() / ".cache" / "lepton_jax"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
