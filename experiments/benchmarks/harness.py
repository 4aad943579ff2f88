"""What the benchmarks share: their command line, training steps that are run in turns, and tables that are printed and kept."""

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.tables import revision
from lepton_jax.core.files import write_text
from lepton_jax.data import Batch


def arguments(doc: str | None, /, *, out: bool = False, **options: tuple[Any, str]) -> argparse.Namespace:
    """Parse the command line.

    Args:
      doc: of the script, shown by ``--help``.
      out: whether it takes a file to write to.
      options: by name, the default, whose type the option has, and what it is. A list takes several, of words those in it; a
        tuple takes one of its words, by default the first.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, about) in options.items():
        several, chosen = isinstance(default, list), isinstance(default, tuple)
        kind = type(default[0] if several or chosen else default)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            nargs="+" if several else None,
            choices=default if chosen or (several and kind is str) else None,
            default=default[0] if chosen else default,
            help=about,
        )
    if out:
        parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    return parser.parse_args()


def publish(lines: Sequence[str], out: Path | None) -> None:
    """Print the lines, and write them if asked."""
    text = "\n".join(lines) + "\n"
    print(text)
    if out:
        write_text(out, text)


def origin(command: str, *, code: bool = True) -> str:
    """Say what made the figures."""
    said = f"`python -m experiments.benchmarks.{command}`, jax {jax.__version__} on {jax.devices()[0].platform}"
    return f"{said}, revision {revision()}." if code else f"{said}."


def installed(peer: str) -> bool:
    """Whether a peer of the extra ``bench`` can be compared with."""
    return importlib.util.find_spec(peer) is not None


def yes(met: bool) -> str:
    """The word for a target."""
    return "yes" if met else "NO"


def noise(shape: tuple[int, ...], count: int, size: int) -> list[Batch]:
    """Batches without anything to learn."""
    rng = np.random.default_rng(0)
    return [
        Batch(rng.random((size, *shape), np.float32), rng.integers(0, 10, size).astype(np.int32), np.ones(size, bool))
        for _ in range(count)
    ]


def processor_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """The processor time of a call, which other programs on the machine disturb less; and what it gave."""
    start = time.process_time()
    result = jax.block_until_ready(function())
    return time.process_time() - start, result


class Run:
    """A training step, the state that it has reached and its last metrics; a call takes one step for each batch."""

    def __init__(self, step: Callable[[Any, Any], Any], state: Any, batches: Sequence[Batch]) -> None:
        self.step, self.state, self.batches = step, state, batches
        self.metrics: dict[str, Any] = {}

    def __call__(self) -> Any:
        """Go on."""
        for batch in self.batches:
            self.state, self.metrics = self.step(self.state, batch)
        return self.state, self.metrics
