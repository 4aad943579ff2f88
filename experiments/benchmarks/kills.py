"""One of two processes is killed at a random step, again and again; the run goes on each time to the bits of one without kills.

    python -m experiments.benchmarks.kills --kills 20 --out experiments/results/kills.md

A tiny pruned network trains by two processes with full sharding. Each time one of them, chosen at random, is killed (SIGKILL)
before a step chosen at random; the other must end by itself, and both are started again. Now and then a copy of what is saved
is carried to its end by one process with four devices. It ends with 1 if the last state has other bits than that of a run
without kills, a copy has other numbers of zeros, or a survivor went on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.harness import arguments, origin, publish, yes
from experiments.benchmarks.kills_worker import run
from experiments.common.processes import ended_together

FORKED = multiprocessing.get_context("forkserver")
"""Begins processes out of one that has only imported what they need: real ones, that are there at once."""
_LONGEST = 240.0


class Ended(NamedTuple):
    """How the processes of one start ended.

    Attributes:
      codes: exit codes, by process.
      seconds: that the other one needed to end after the kill.
      said: the last lines of its error stream.
    """

    codes: list[int]
    seconds: float
    said: str


def start(folder: Path, steps: int, *, processes: int = 2, devices: int = 2, kill: tuple[int, int] = (0, 0)) -> Ended:
    """Start the processes, and wait until all have ended; kill is (process, step)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = json.dumps({"folder": str(folder), "steps": steps, "process": kill[0], "step": kill[1]})
    about = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    with tempfile.NamedTemporaryFile("w+") as said:
        running = [
            FORKED.Process(target=apart, args=({**about, "JAX_PROCESS_ID": str(number)}, said.name, words))
            for number in range(processes)
        ]
        for process in running:
            process.start()
        began, first = time.monotonic(), None
        while any(process.exitcode is None for process in running) and time.monotonic() - began < _LONGEST:
            if first is None and any(process.exitcode for process in running):
                first = time.monotonic()
            time.sleep(0.02)
        seconds = 0.0 if first is None else time.monotonic() - first
        for process in running:
            process.kill()
            process.join()
        said.seek(0)
        return Ended([process.exitcode or 0 for process in running], seconds, said.read())


def apart(about: dict[str, str], said: str, words: str) -> None:
    """Be one process of a run, which has its modules already, and no device yet."""
    os.environ.update(about)
    with open(said, "a") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with ended_together():
        run(words)
    sys.stderr.flush()


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def result(folder: Path, ended: Ended) -> Any:
    """Return what process 0 wrote.

    Raises:
      RuntimeError: if it wrote nothing.
    """
    if any(ended.codes):
        raise RuntimeError(f"the run in {folder} did not end: codes {ended.codes}. {ended.said[-800:]}")
    return json.loads((folder / "result.json").read_text())


def measure(folder: Path, kills: int, steps: int, elsewhere: int, seed: int) -> tuple[list[Sequence[str]], bool]:
    """Return the lines of the table, and whether all is as it must be."""
    chosen, killed = random.Random(seed), folder / "killed"
    (folder / "alone").mkdir()
    killed.mkdir()
    alone = result(folder / "alone", start(folder / "alone", steps))
    lines: list[Sequence[str]] = []
    met = True
    for number in range(1, kills + 1):
        begun = newest(killed)
        # Later kills are farther on, so that all find something to kill.
        victim, step = chosen.randrange(2), chosen.randint(begun, min(steps - 1, begun + 2 * steps // kills))
        ended = start(killed, steps, kill=(victim, max(step, 1)))
        alive = ended.codes[1 - victim]
        line = next((one for one in ended.said.splitlines() if one.startswith("error: ")), "")
        good = ended.codes[victim] == -signal.SIGKILL and alive not in (0, -signal.SIGKILL)
        copied = ""
        if number % max(1, kills // max(elsewhere, 1)) == 0 and elsewhere:
            there = folder / f"copy{number}"
            shutil.copytree(killed, there)
            found = result(there, start(there, steps, processes=1, devices=4))
            copied = "the same zeros" if found["zeros"] == alone["zeros"] else f"ZEROS {found['zeros']}"
            good &= found["zeros"] == alone["zeros"]
            shutil.rmtree(there)
        met &= good
        about = (str(number), str(victim), str(max(step, 1)), str(newest(killed)), str(alive), f"{ended.seconds:.1f}")
        lines.append((*about, "one line" if line else "by jax's own end", copied))
        print(" | ".join(lines[-1]), flush=True)
    last = result(killed, start(killed, steps))
    same = last["digest"] == alone["digest"]
    lines.append(("none: the end", "", "", str(last["step"]), "0", "", "", "the same bits" if same else "OTHER BITS"))
    return lines, met and same


def main() -> None:
    """Kill, go on, compare, publish."""
    given = arguments(
        __doc__,
        out=True,
        kills=(20, "how often one is killed"),
        steps=(200, "of the training"),
        elsewhere=(5, "how often a copy goes on with one process and four devices"),
        seed=(0, "of the steps and processes"),
    )
    os.environ.update({"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"})
    FORKED.set_forkserver_preload(["experiments.benchmarks.kills_worker"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lines, met = measure(Path(folder), given.kills, given.steps, given.elsewhere, given.seed)
    heads = ("kill", "process", "before step", "newest checkpoint", "code of the other", "seconds until it ended", "it said")
    table = [(*heads, "compared"), ("---",) * (len(heads) + 1), *lines]
    command = f"kills --kills {given.kills} --steps {given.steps} --elsewhere {given.elsewhere} --seed {given.seed}"
    text = [
        "# One of two processes is killed",
        "",
        f"Made by {origin(command)} CPU, gloo on the loopback; seconds are of a machine that other work shared.",
        "",
        *(f"| {' | '.join(line)} |" for line in table),
        "",
        f"{given.kills} kills; every survivor ended, zeros are the same on one process with four devices, and the last state "
        f"has the bits of a run without kills (parameters, masks, moments): {yes(met)}.",
    ]
    publish(text, given.out)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
