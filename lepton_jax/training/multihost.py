"""Several processes as one run, on jax's own runtime: begin, wait for one another, share out the data.

Every process runs the same program and holds the same Python values; arrays of a mesh over all devices are theirs together.
Process 0 writes the logs. A peer that is lost cannot be replaced in a run: the others abort within the heartbeat's time-out,
and whoever started them starts all of them again, to resume from the newest checkpoint.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect, one_line
from lepton_jax.core.typing import PyTree

_VARIABLES = {
    "coordinator": ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS"),
    "processes": ("JAX_NUM_PROCESSES", "NUM_PROCESSES", "WORLD_SIZE"),
    "process": ("JAX_PROCESS_ID", "PROCESS_ID", "RANK"),
}


@checked
def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
    heartbeat: int = 100,
) -> int:
    """Join the processes of a run; call it before anything else asks jax for its devices.

    What is not given is read from the environment: the coordinator's address from ``JAX_COORDINATOR_ADDRESS`` or
    ``COORDINATOR_ADDRESS`` (or ``MASTER_ADDR`` and ``MASTER_PORT``), the number of processes from ``JAX_NUM_PROCESSES``,
    ``NUM_PROCESSES`` or ``WORLD_SIZE``, and which this one is from ``JAX_PROCESS_ID``, ``PROCESS_ID`` or ``RANK``. Where none
    of this is set, this is a run of one process; on SLURM, in TPU pods and wherever else jax finds its peers by itself, call
    `jax.distributed.initialize` instead. On CPU the processes speak gloo.

    Args:
      coordinator: "host:port" of process 0, which the others can reach.
      processes: how many, 1 or more.
      process: which this one is, from 0.
      timeout: seconds to wait for the others.
      heartbeat: seconds after which a silent peer counts as lost, and the others abort.

    Returns:
      Which process this is.

    Raises:
      ValueError: if some of the three are known and others are not, or they do not fit together; if the processes were told
        different numbers of processes.
      RuntimeError: if the others did not come in time.

    Example:
      >>> initialize(processes=1)
      0
    """
    check_whole("initialize: timeout", timeout, 1)
    check_whole("initialize: heartbeat", heartbeat, 1)
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    known = _known(given, os.environ)
    if not known or (known.get("processes") == 1 and known.get("process", 0) == 0):
        return 0
    with collect(
        "initialize: each process must be told the coordinator, how many processes there are, and which it is"
    ) as problems:
        for name, variables in _VARIABLES.items():
            if name not in known:
                problems.append(f"{name}: not given, nor any of {', '.join(variables)} set")
        count, number = known.get("processes", 1), known.get("process", 0)
        if count < 1:
            problems.append(f"processes: must be 1 or more; got {count}")
        elif not 0 <= number < count:
            problems.append(f"process: must be from 0 to {count - 1}; got {number}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            known["coordinator"], count, number, initialization_timeout=timeout, heartbeat_timeout_seconds=heartbeat
        )
    except Exception as error:
        raise RuntimeError(
            f"initialize: process {number} of {count} could not join at {known['coordinator']}: {one_line(error)}. Start all "
            "of them with the same address and count, and this before anything asks jax for its devices."
        ) from error
    agree("the number of processes", count, timeout=timeout)
    return number


@checked
def is_first() -> bool:
    """Whether this process writes logs and files that all share.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0


@checked
def barrier(name: str, *, timeout: float = 60.0) -> None:
    """Wait until all processes are here.

    Args:
      name: of the place.
      timeout: in seconds.

    Raises:
      TimeoutError: if some did not come; the run is to be started again and resumed.

    Example:
      >>> barrier("before the evaluation")
    """
    if not timeout > 0:
        raise ValueError(f"barrier: timeout must be seconds, more than 0; got {timeout}.")
    if not _several():
        return
    try:
        _client().wait_at_barrier(f"{name} {_times('barrier', name)}", int(timeout * 1000))
    except Exception as error:
        raise TimeoutError(
            f"barrier: not all {jax.process_count()} processes came to {name!r} within {timeout:g} s: {one_line(error)[:200]}. "
            "Start all of them again, and resume."
        ) from error


@checked
def from_first(name: str, value: Any, *, timeout: float = 600.0) -> Any:
    """Return what process 0 gave, in every process: a choice that all must make alike, such as whether it is time to save.

    Args:
      name: of what is asked; all ask in the same order.
      value: as JSON can hold it; that of the other processes is not looked at.
      timeout: in seconds.

    Raises:
      TimeoutError: if process 0 did not say in time.

    Example:
      >>> from_first("is it time", True)
      True
    """
    if not _several():
        return value
    key = f"lepton/first/{name}/{_times('first', name)}"
    if _number() == 0:
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_heard(key, name, timeout))


@checked
def agree(name: str, value: Any, *, timeout: float = 60.0) -> None:
    """Raise in every process unless all of them give the same.

    Args:
      name: of what is compared; all compare in the same order.
      value: as JSON can hold it.
      timeout: in seconds.

    Raises:
      ValueError: if they differ; with what each process gave.
      TimeoutError: if some did not say in time.

    Example:
      >>> agree("the step to resume at", 100)
    """
    if not _several():
        return
    at, number, said = f"lepton/agree/{name}/{_times('agree', name)}", _number(), json.dumps(value)
    _client().key_value_set(f"{at}/{number}", said)
    if number == 0:
        each = [said, *(_heard(f"{at}/{other}", name, timeout) for other in range(1, _processes()))]
        differ = ", ".join(f"process {other} says {one}" for other, one in enumerate(each)) if len(set(each)) > 1 else ""
        _client().key_value_set(f"{at}/verdict", differ or " ")
    else:
        differ = _heard(f"{at}/verdict", name, timeout).strip()
    if differ:
        raise ValueError(f"the processes of this run must agree on {name}: {differ}. Start all of them alike.")


@checked
def own_rows(length: int) -> slice:
    """Return which rows of a batch this process reads: an equal part each, in the order of the processes.

    Args:
      length: of the batch of all processes.

    Raises:
      ValueError: if the processes do not divide it.

    Example:
      >>> own_rows(8)
      slice(0, 8, None)
    """
    count = jax.process_count()
    if length % count:
        raise ValueError(f"own_rows: a batch over {count} processes must have a multiple of {count} rows; got {length}.")
    share = length // count
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


@checked
def joined(batch: PyTree, mesh: Mesh, *, axis: str = "data") -> PyTree:
    """Return the batch of all processes, of which each gives its own rows.

    Args:
      batch: arrays on the host, with this process' rows first: those of `own_rows`.
      mesh: of the devices of all processes.
      axis: of the mesh, that rows are spread over.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> joined({"x": np.ones((4, 2))}, mesh)["x"].shape
      (4, 2)
    """
    if axis not in mesh.shape:
        raise ValueError(f"joined: axis must be one of the mesh, {mesh.axis_names}; got {axis!r}.")
    spread = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(spread, np.asarray(leaf)), batch)


def _known(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what is given, and else what the environment says."""
    known = {name: value for name, value in given.items() if value is not None}
    for name, variables in _VARIABLES.items():
        found = next((environment[variable] for variable in variables if environment.get(variable)), None)
        if name == "coordinator" and found is None and environment.get("MASTER_ADDR"):
            found = f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT', '1234')}"
        if name not in known and found is not None:
            if name != "coordinator" and not found.isdecimal():
                raise ValueError(f"initialize: {' or '.join(variables)} must be a whole number; got {found!r}.")
            known[name] = found if name == "coordinator" else int(found)
    return known


_ASKED: Counter[tuple[str, str]] = Counter()
"""How often each thing was asked: no name can be used twice with jax's coordinator."""


def _times(kind: str, name: str) -> int:
    _ASKED[kind, name] += 1
    return _ASKED[kind, name]


def _several() -> bool:
    return _processes() > 1


def _processes() -> int:
    return _state().num_processes or 1


def _number() -> int:
    return _state().process_id or 0


def _client() -> Any:
    return _state().client


def _state() -> Any:
    from jax._src.distributed import global_state  # jax has no public barrier with a time-out, and no exchange of words

    return global_state


def _heard(key: str, name: str, timeout: float) -> str:
    try:
        return str(_client().blocking_key_value_get(key, int(timeout * 1000)))
    except Exception as error:
        raise TimeoutError(
            f"multihost: a process did not say {name} within {timeout:g} s: {one_line(error)[:200]}. Start all of them again, "
            "and resume."
        ) from error
