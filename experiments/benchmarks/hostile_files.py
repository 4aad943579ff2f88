"""Hostile files for every reader: none kills or hangs it, takes over 1 s or 256 MB, or ends in an undocumented error.

    python -m experiments.benchmarks.hostile_files --files 100000 --out experiments/results/hostile_files.md

Files of every kind (see `experiments.hostile.readers`), made from a seed, are read one after another in a process of its own,
with limits of memory and of processor time; programs that deserialise are run. What became of each is kept in --runs, and the
same command goes on from there. It ends with 1 if a file failed. Times are of the processor; a file whose program is compiled
and run, too, may take ten times as long. Growth is that of the process's peak memory.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from experiments.benchmarks.harness import arguments, origin, publish
from experiments.hostile import apart
from experiments.hostile.judged import Outcome
from experiments.hostile.readers import shares

_ABOUT = (
    "| what was done | files | refused | read | failed | mean, ms | worst, ms | growth, MB |",
    "|---|---|---|---|---|---|---|---|",
)


def kept(path: Path) -> list[Outcome]:
    """What became of the files of a kind so far; a line that was cut is read again."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(Outcome(*json.loads(line)))
        except (ValueError, TypeError):
            break
    if len(found) < len(lines):
        path.write_text("".join(json.dumps(outcome) + "\n" for outcome in found))
    return found


def go_on(kind: str, seed: int, files: int, path: Path) -> list[Outcome]:
    """Read the files of a kind that were not read yet, and keep what becomes of each."""
    found = kept(path)
    with path.open("a") as rows:
        rest = apart.outcomes(kind, seed, range(len(found), files))
        for _, outcome in tqdm(rest, desc=kind, total=max(files - len(found), 0), mininterval=10):
            rows.write(json.dumps(outcome) + "\n")
            rows.flush()
            found.append(outcome)
    return found[:files]


def row(name: str, outcomes: list[Outcome]) -> str:
    """The figures of some files."""
    refused, failed = sum(one.refused and not one.wrong for one in outcomes), sum(bool(one.wrong) for one in outcomes)
    worst, mean = 1e3 * max(one.seconds for one in outcomes), 1e3 * sum(one.seconds for one in outcomes) / len(outcomes)
    growth = sum(one.growth for one in outcomes) / 1e6
    counts = f"{len(outcomes)} | {refused} | {len(outcomes) - refused - failed} | {failed}"
    return f"| {name} | {counts} | {mean:.1f} | {worst:.1f} | {growth:.0f} |"


def table(found: dict[str, list[Outcome]]) -> Iterator[str]:
    """The figures by reader, and by what was done."""
    yield from _ABOUT
    for kind, outcomes in found.items():
        by_what: dict[str, list[Outcome]] = collections.defaultdict(list)
        for outcome in outcomes:
            by_what[outcome.what].append(outcome)
        yield row(f"**{kind}**", outcomes)
        if len(by_what) > 1:
            yield from (row(what or "killed", some) for what, some in sorted(by_what.items()))
    yield row("**all**", [outcome for outcomes in found.values() for outcome in outcomes])


def failures(found: dict[str, list[Outcome]]) -> Iterator[str]:
    """What failed: by its kind and case, from which the file can be made again."""
    for kind, outcomes in found.items():
        yield from (f"- {kind} {case}: {one.what}: {one.wrong}" for case, one in enumerate(outcomes) if one.wrong)


def lines(found: dict[str, list[Outcome]], command: str) -> Iterable[str]:
    """The report."""
    wrong = list(failures(found))
    yield from ("# Hostile files", "", f"Made by {origin(command)}", "", *table(found))
    yield from ("", f"{len(wrong)} files failed.", *wrong[:50])


def main() -> None:
    """Read the files and publish the figures."""
    options = arguments(
        __doc__,
        out=True,
        files=(100_000, "over all kinds"),
        seed=(0, "of the files"),
        runs=("runs/hostile_files", "a folder for what became of each file"),
    )
    folder = Path(options.runs) / str(options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        kind: go_on(kind, options.seed, count, folder / f"{kind.replace(' ', '_')}.jsonl")
        for kind, count in shares(options.files).items()
    }
    publish(list(lines(found, f"hostile_files --files {options.files} --seed {options.seed}")), options.out)
    if any(failures(found)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
