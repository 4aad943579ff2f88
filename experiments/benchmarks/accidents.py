"""Kills, a full disk and a read-only folder: nothing is lost, and what goes on comes to the same bits.

    python -m experiments.benchmarks.accidents --kills 200 --out experiments/results/accidents.md

* A pipeline (see `experiments.hostile.pipeline`) trains a model, prunes and quantizes it in training, and saves it. It is
  killed at random moments, and started again, until it ends; then its model, results and metrics must be those of a run that
  was never stopped, to the byte. So many kills in all, at least.
* As many writers of a `.lepton` file of 300 kB are killed at random moments: the old file or the new one must be there, whole.
* In the midst of each phase no file can grow any more, or nothing in the folder can be written: it must end with one line that
  says so, and go on to the same bytes once there is room again.

What became of each run is kept in --runs, and the same command goes on from there. It ends with 1 if anything was lost.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import arguments, origin, publish
from experiments.hostile.pipeline import ACCIDENTS, PHASES, SAYS, STOPPED
from lepton_jax.artifact import container

ROOT = Path(__file__).parents[2]
_LONGEST, _DELAY = 30, 0.02
"""Steps after which it is killed at the latest, and seconds into a step."""
_BYTES = 300_000


def start(folder: Path, cache: Path, *words: str) -> subprocess.Popen[str]:
    """Start the pipeline in a folder, or go on with it."""
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "experiments.hostile.pipeline", str(folder), *words]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **cached}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for it; its exit code and what it said of errors."""
    _, said = process.communicate()
    return process.returncode, said


def results(folder: Path) -> dict[str, bytes]:
    """All files but the checkpoints."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def killed_run(folder: Path, cache: Path, rng: random.Random) -> dict[str, int]:
    """Kill the pipeline again and again until it ends; how often in each phase."""
    kills: collections.Counter[str] = collections.Counter()
    while True:
        process, phase, after = start(folder, cache), "starting", rng.randrange(1, _LONGEST)
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, 1):
            phase = line.split()[0]
            if number == after:
                time.sleep(rng.uniform(0, _DELAY))
                break
        else:
            code, said = end(process)
            if code:
                raise RuntimeError(f"after {dict(kills)} kills the pipeline ended with {code}: {said[-2000:]}")
            return dict(kills)
        process.kill()
        process.communicate()
        kills[phase] += 1


def accident(kind: str, phase: str, folder: Path, cache: Path) -> str:
    """Let an accident happen, and go on; what it said."""
    code, said = end(start(folder, cache, "--accident", kind, "--phase", phase))
    own = [line.removeprefix(SAYS) for line in said.splitlines() if line.startswith(SAYS)]  # among what libraries log
    if code != STOPPED or len(own) != 1 or "cannot write" not in own[0]:
        raise RuntimeError(f"{kind} in {phase}: ended with {code} and said {said[-2000:]}")
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        place.chmod(0o755)
    code, later = end(start(folder, cache))
    if code:
        raise RuntimeError(f"{kind} in {phase}: did not go on: {code} {later[-2000:]}")
    return own[0].replace(str(folder), "FOLDER")[:300]


def killed_writers(kills: int, folder: Path, rng: random.Random) -> tuple[int, int]:
    """Kill writers of a file; how often the old one was there afterwards, and how often the new one."""
    path, found = folder / "m.lepton", [0, 0]
    contents = [container.build(b'{"tree":{}}', b"program", bytes([n]) * _BYTES) for n in range(2)]
    begin = time.perf_counter()
    container.write_atomic(path, contents[0])
    longest = 2 * (time.perf_counter() - begin) + 0.005
    for kill in range(kills):
        old, new = contents[kill % 2], contents[1 - kill % 2]
        container.write_atomic(path, old)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jax warns of forks; this one only writes
            process = os.fork()
        if not process:
            container.write_atomic(path, new)
            time.sleep(60)
            os._exit(0)
        time.sleep(rng.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        container.parse(container.read(path), "m.lepton")
        found[contents.index(container.read(path)) == 1 - kill % 2] += 1
    return found[0], found[1]


def rows(path: Path) -> list[dict[str, Any]]:
    """What became of the runs so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add a run."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def go_on(kills: int, seed: int, kept: Path) -> None:
    """Do what has not been done yet."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        (whole := folder / "whole").mkdir()
        code, said = end(start(whole, folder / "cache"))
        if code:
            raise RuntimeError(f"the pipeline ended with {code}: {said[-2000:]}")
        expected = results(whole)

        def tried(row: dict[str, Any], number: int) -> None:
            found = results(folder / "run")
            differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            keep(kept, {**row, "number": number, "same": not differ, "differ": differ})
            if differ:  # to be looked at
                for side in ("run", "whole"):
                    shutil.copytree(folder / side, kept.parent / f"{row.get('phase', 'killed')} {number}" / side)
            shutil.rmtree(folder / "run")

        done = rows(kept)
        for kind, phase in [(kind, phase) for kind in ACCIDENTS for phase in PHASES]:
            if not any(row.get("accident") == kind and row.get("phase") == phase for row in done):
                (folder / "run").mkdir()
                tried({"accident": kind, "phase": phase, "said": accident(kind, phase, folder / "run", folder / "cache")}, 0)
        writers = sum(row["old"] + row["new"] for row in done if "old" in row)
        if writers < kills:
            old, new = killed_writers(kills - writers, folder, random.Random(f"{seed} {writers}"))
            keep(kept, {"old": old, "new": new, "same": True})
        while (count := sum(sum(row.get("kills", {}).values()) for row in rows(kept))) < kills:
            (folder / "run").mkdir()
            found = killed_run(folder / "run", folder / "cache", random.Random(f"{seed} {count}"))
            tried({"kills": found}, count)


def lines(found: list[dict[str, Any]], command: str) -> Iterator[str]:
    """The report."""
    runs = [row for row in found if "kills" in row]
    total: collections.Counter[str] = collections.Counter()
    for row in runs:
        total.update(row["kills"])
    yield from ("# Accidents", "", f"Made by {origin(command)}", "")
    yield from ("| what happened | how often | nothing lost, the same bytes at the end |", "|---|---|---|")
    for phase in ("starting", *PHASES):
        yield f"| killed while {phase} | {total[phase]} | |"
    yield f"| killed, in all, in {len(runs)} runs | {total.total()} | {sum(row['same'] for row in runs)} of {len(runs)} runs |"
    old, new = (sum(row.get(which, 0) for row in found) for which in ("old", "new"))
    yield f"| killed while a file is written | {old + new} | all whole: {old} the old one, {new} the new one |"
    for row in found:
        if "accident" in row:
            what = {"full": "no file can grow", "read-only": "nothing can be written"}[row["accident"]]
            yield f"| {what}, in the midst of {row['phase']} | 1 | {'yes' if row['same'] else 'NO'} |"
    yield from ("", "What was said:", "")
    yield from (f"- {row['accident']}, {row['phase']}: {row['said']}" for row in found if "accident" in row)


def main() -> None:
    """Let the accidents happen and publish the figures."""
    options = arguments(
        __doc__,
        out=True,
        kills=(200, "of the pipeline, and of writers"),
        seed=(0, "of the moments"),
        runs=("runs/accidents", "a folder for what became of each run"),
    )
    kept = Path(options.runs) / f"{options.seed}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    go_on(options.kills, options.seed, kept)
    found = rows(kept)
    publish(list(lines(found, f"accidents --kills {options.kills} --seed {options.seed}")), options.out)
    if not all(row["same"] for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
