"""Hostile files read in a process of their own, with limits: one that is killed or hangs is an outcome, and the rest go on.

python -m experiments.hostile.apart KIND --seed 0 --first 0 --count 100
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.hostile.judged import Outcome

ROOT = Path(__file__).parents[2]
_MEMORY = 4 << 30
"""Bytes of addresses that such a process may have beyond those it begins with."""
_PROCESSOR, _SILENT = 30, 300
"""Seconds of processor time for a file, and of silence, after which the process is ended."""


def outcomes(kind: str, seed: int, cases: range) -> Iterator[tuple[int, Outcome]]:
    """Yield what became of these cases of a kind, in order."""
    case = cases.start
    while case < cases.stop:
        words = [kind, "--seed", str(seed), "--first", str(case), "--count", str(cases.stop - case)]
        with subprocess.Popen(
            [sys.executable, "-m", "experiments.hostile.apart", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        ) as process:
            silent = False
            assert process.stdout is not None
            while not silent:
                ready, _, _ = select.select([process.stdout], [], [], _SILENT)
                line = process.stdout.readline() if ready else b""
                silent = not ready
                if not line:
                    break
                yield case, Outcome(*json.loads(line))
                case += 1
            if silent:
                process.kill()
            code = process.wait()
        if case < cases.stop:
            how = "hangs" if silent else f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            yield case, Outcome("", False, f"the process {how}")
            case += 1


def main() -> None:
    """Read the cases, and print an outcome a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind")
    for name in ("seed", "first", "count"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no outcome
    from experiments.hostile.readers import KINDS

    kind = KINDS[options.kind]
    with tempfile.TemporaryDirectory() as folder:
        kind.attempt(Path(folder), options.seed, options.first)  # so that what is imported or kept is there
        _limit(resource.RLIMIT_AS, _addresses() + _MEMORY)
        for case in range(options.first, options.first + options.count):
            _limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + _PROCESSOR)
            print(json.dumps(kind.attempt(Path(folder), options.seed, case)), file=out, flush=True)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _addresses() -> int:
    """Bytes of addresses that this process has; of other systems than Linux, a guess."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 16 << 30


if __name__ == "__main__":
    main()
