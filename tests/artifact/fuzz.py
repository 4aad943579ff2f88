"""Thousands of hostile `.lepton` files: each must end in `ArtifactError`, which says where, or in an exact load.

    python tests/artifact/fuzz.py --cases 20000
    python tests/artifact/fuzz.py --cases 20000 --write     # figures to experiments/results

A file fails the test if loading it raises anything else or warns, if a changed file under unchanged checksums gives other
tensors, if a loaded leaf is not what the manifest says or cannot be unpacked, or if it takes more than a second of processor
time, or the process's peak memory grows by more than 256 MB.
"""

from __future__ import annotations

import argparse
import collections
import re
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from hostile_files import Good, Hostile, good_files, hostile
from tqdm.auto import tqdm

from lepton_jax.artifact import Artifact, ArtifactError, load
from lepton_jax.core.packed import is_coded, is_packed

_PLACE = re.compile(r"offsets? \d|tensor |the manifest")
_RESULT = Path(__file__).parents[2] / "experiments" / "results" / "artifact_robustness.md"


def _peak() -> int:
    """The most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Outcome(NamedTuple):
    """What became of one file.

    Args:
      refused: whether it ended in `ArtifactError`.
      wrong: what was wrong with the outcome, or "".
      seconds: of processor time that loading took.
      growth: by how many bytes the process's peak memory grew.
    """

    refused: bool
    wrong: str
    seconds: float
    growth: int


def tensor_bits(artifact: Artifact) -> list[tuple[Any, ...]]:
    """All arrays of a file's leaves, with their dtypes and shapes; random keys as their words."""
    parts = [
        jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(artifact.packed)
    ]
    return [(np.shape(part), str(part.dtype), np.asarray(part).tobytes()) for part in parts]


def _inconsistent(artifact: Artifact) -> str:
    """Why the leaves are not what the manifest says, if so; shapes only, nothing is computed."""
    for leaf in jax.tree.leaves(artifact.packed, is_leaf=is_packed):
        dense = jax.eval_shape(lambda one: one.unpack(), leaf) if is_packed(leaf) else leaf
        if dense.shape != leaf.shape:
            return f"unpacks to {dense.shape}, declares {leaf.shape}"
    declared = sorted(spec.shape for _, spec, _, _ in artifact._parts.tensors)  # jax sorts the keys of mappings
    found = sorted(leaf.shape for leaf in jax.tree.leaves(artifact.packed, is_leaf=is_coded))
    return "" if declared == found else f"shapes {found}, declares {declared}"


def attempt(path: Path, file: Hostile, bits: list[list[tuple[Any, ...]]]) -> Outcome:
    """Load one hostile file and judge what comes of it.

    Args:
      path: where to put it.
      file: the file.
      bits: of the good files, what `tensor_bits` gives.
    """
    path.write_bytes(file.data)
    before = _peak()
    begin, wrong, refused, artifact = time.process_time(), "", False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            artifact = load(path)
    except ArtifactError as error:
        refused = True
        wrong = "" if _PLACE.search(str(error)) else f"says not where: {error}"
    except Exception as error:  # the very thing that must not be
        wrong = f"{type(error).__name__}: {error}"
    seconds, growth = time.process_time() - begin, _peak() - before
    if artifact is not None and not wrong:
        if not file.sealed and tensor_bits(artifact) != bits[file.good]:
            wrong = "other tensors under unchanged checksums"
        else:
            wrong = _inconsistent(artifact)
    if not wrong and (seconds > 1 or growth > 256_000_000):
        wrong = f"took {seconds:.2f} s and {growth / 1e6:.0f} MB"
    return Outcome(refused, wrong, seconds, growth)


def run(cases: range, seed: int, folder: Path, show: bool = False) -> tuple[list[tuple[int, str, Outcome]], list[Good]]:
    """Attempt these cases; the outcomes with their numbers and kinds."""
    goods, path = good_files(), folder / "hostile.lepton"
    bits = []
    for good in goods:
        path.write_bytes(good.file)
        bits.append(tensor_bits(load(path)))
    out = []
    for case in tqdm(cases, desc="hostile files", disable=not show):
        file = hostile(goods, seed, case)
        out.append((case, file.kind, attempt(path, file, bits)))
    return out, goods


def main() -> None:
    """Run all cases and print, or write, the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {_RESULT.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, goods = run(range(options.first, options.first + options.cases), options.seed, Path(folder), show=True)
    text = table(outcomes, goods, options.seed)
    print(text)
    failures = [(case, kind, outcome.wrong) for case, kind, outcome in outcomes if outcome.wrong]
    for failure in failures[:50]:
        print(*failure)
    if options.write:
        _RESULT.write_text(text)
    if failures:
        raise SystemExit(f"{len(failures)} of {len(outcomes)} files failed")


def table(outcomes: list[tuple[int, str, Outcome]], goods: list[Good], seed: int) -> str:
    """The figures, as Markdown."""
    kinds: dict[str, list[Outcome]] = collections.defaultdict(list)
    for _, kind, outcome in outcomes:
        kinds[kind].append(outcome)
    lines = [
        "# Hostile files",
        "",
        f"{len(outcomes)} files made from {len(goods)} good ones, seed {seed}; together these hold every coder and every "
        "kind of leaf. Times are of the processor; growth is that of the process's peak memory over all the files of a row.",
        "",
        f"Command: `python tests/artifact/fuzz.py --cases {len(outcomes)}`",
        "",
        "| what was done | files | refused | loaded | failed | mean, ms | worst, ms | growth, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, some in [*sorted(kinds.items()), ("all", [outcome for _, _, outcome in outcomes])]:
        refused, failed = sum(one.refused for one in some), sum(bool(one.wrong) for one in some)
        worst, mean = 1e3 * max(one.seconds for one in some), 1e3 * sum(one.seconds for one in some) / len(some)
        growth = sum(one.growth for one in some) / 1e6
        counts = f"{len(some)} | {refused} | {len(some) - refused - failed} | {failed}"
        lines.append(f"| {name} | {counts} | {mean:.1f} | {worst:.1f} | {growth:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
