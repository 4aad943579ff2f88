"""Several processes that train as one: started on this machine, or joined where something else started them.

Every process runs the same script. What `train` trains is spread over the rows of its batches; all else each computes for
itself. Process 0 writes the files and speaks.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from lepton_jax.core.errors import one_line
from lepton_jax.core.typing import PyTree
from lepton_jax.training import FitSettings, StackedSource, TrainState, TrainStep, data_mesh, fit, multihost, replicated

_STARTED = "LEPTON_STARTED_BY"
"""Set in processes that `start` started."""
_GRACE = 30.0
"""Seconds that the others have to end by themselves when one was lost."""
_LONG = 6 * 3600.0
"""Seconds that processes wait for process 0, which alone saves, times and draws."""


def join(count: int) -> None:
    """Be one of so many processes: start them here and end with their exit code, or join those that were started.

    Where the environment says which process this is (see `multihost.initialize`), it joins the others. Else it starts as many
    on this machine, on CPU, with its own command line.

    Args:
      count: how many; 1: nothing happens.

    Raises:
      ValueError: if it is not 1 or more, or the environment says another number.
      SystemExit: when those that it started have ended.
    """
    if count < 1:
        raise ValueError(f"--processes must be at least 1; got {count}.")
    if count == 1:
        return
    known = multihost._known({}, os.environ)
    if "process" not in known:
        sys.exit(start(count))
    if known.get("processes", count) != count:
        raise ValueError(f"--processes says {count}, and the environment {known['processes']}. Start all processes alike.")
    if multihost.initialize(processes=count) and _STARTED in os.environ:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def start(count: int) -> int:
    """Start this process' own command so many times, as one run; return an exit code when all have ended.

    When another than process 0 ends badly, the rest have half a minute to say so and end, and are then killed. Ctrl-C and
    SIGTERM go to process 0, which stops all at its next row of metrics.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    spec = sys.modules["__main__"].__spec__
    command = [sys.executable, *(["-m", spec.name, *sys.argv[1:]] if spec is not None else sys.argv)]
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), _STARTED: str(os.getpid())}
    quiet = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        running = [
            subprocess.Popen(
                command,
                env={**quiet, **common, "JAX_PROCESS_ID": str(number)},
                stderr=None if number == 0 else said[number],
                start_new_session=True,  # signals of the terminal come here alone
            )
            for number in range(count)
        ]
        try:
            lost = _watch(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        if lost is None:
            return 0
        code = running[lost].returncode
        if lost or code < 0:
            said[lost].seek(0)
            words = [line for line in said[lost].read().splitlines() if line.startswith("error: ")]
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            print(f"error: process {lost} of {count} {how}. {' '.join(words[-1:])}".rstrip(), file=sys.stderr)
            print("Go on with the same command and --resume.", file=sys.stderr)
        return code if code > 0 else 1


def _watch(running: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended well, or one has not and the others had their time; return which that was."""
    lost, until, stops = None, float("inf"), 0
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        bad = [number for number, process in enumerate(running) if process.poll()]
        if lost is None and bad:
            lost, until = bad[0], time.monotonic() + (_GRACE if bad[0] else 1.0)  # of process 0 the others know no more
        try:
            time.sleep(0.05)
        except (KeyboardInterrupt, SystemExit) as stop:
            stops += 1
            if stops > 1:
                raise
            running[0].send_signal(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    return lost if lost is not None else next((n for n, process in enumerate(running) if process.returncode), None)


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Let all processes of the run end at once; if this one ends badly, at once and without the others.

    Raises:
      SystemExit: with one clear line, if another process was lost.
    """
    try:
        yield
        if multihost._several():
            after("the end")
    except SystemExit as stop:
        _leave(stop.code)
        raise
    except jax.errors.JaxRuntimeError as error:
        if not multihost._several():
            raise
        print(f"error: another process of this run was lost ({one_line(error)[:160]}).", file=sys.stderr)
        if _STARTED not in os.environ:  # else the process that started it says so
            print("Go on with the same command and --resume, in all processes.", file=sys.stderr)
        _leave(1)


def _leave(code: Any) -> None:
    """End this process now: at a usual end jax would wait for the others."""
    if multihost._several() and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def after(name: str) -> None:
    """Wait until all processes are here, process 0 after what it alone does."""
    multihost.barrier(name, timeout=_LONG)


def own(path: Path) -> Path:
    """Return where this process writes a file that process 0 writes at a path.

    Example:
      >>> own(Path("runs/a/model.lepton"))
      PosixPath('runs/a/model.lepton')
    """
    return path if multihost.is_first() else Path(_aside().name) / path.name


@cache
def _aside() -> Any:
    return tempfile.TemporaryDirectory()


def train(
    state: TrainState,
    step: TrainStep,
    batch_at: Callable[[int], Any] | StackedSource,
    settings: FitSettings,
    *,
    evaluate: Callable[[TrainState], dict[str, Any]] | None = None,
    **ways: Any,
) -> TrainState:
    """Train by `fit`; in several processes with the rows of each batch spread over all of them.

    Args:
      state: of this process, the same in each.
      step, batch_at, settings: as for `fit`; batches are the same in each process.
      evaluate: measures the state as this process has it.
      **ways: other arguments of `fit`.

    Returns:
      The state, whole in this process.
    """
    if jax.process_count() == 1:
        return fit(state, step, batch_at, settings, evaluate=evaluate, **ways)
    placement = replicated(data_mesh())
    measure = None if evaluate is None else lambda spread: evaluate(home(spread))
    after(f"the beginning of {ways.get('name', 'a training')}")
    settings = dataclasses.replace(settings, scan=1)  # what is scanned lies in one process
    return home(fit(placement.place(state), step, batch_at, settings, evaluate=measure, placement=placement, **ways))


def home(tree: PyTree) -> PyTree:
    """Return arrays that all devices of all processes have whole, as those of this process' first device.

    Example:
      >>> home({"w": jax.numpy.ones(2)})
      {'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)
