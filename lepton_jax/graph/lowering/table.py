"""Forms that were measured on a machine, and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

from lepton_jax.core.errors import one_line
from lepton_jax.core.files import write_text
from lepton_jax.core.kinds import described

Table = Mapping[str, str] | str | os.PathLike[str]
"""Forms by `Site.key`, or the file of `measure_lowerings` that keeps them."""


class IgnoredTableWarning(UserWarning):
    """A file of measured forms is of another machine or damaged, and was not used.

    Example:
      >>> issubclass(IgnoredTableWarning, UserWarning)
      True
    """


def machine() -> dict[str, Any]:
    """What measured times hold for.

    Example:
      >>> sorted(machine())
      ['cpu', 'device', 'flags', 'jaxlib', 'threads']
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "device": jax.devices()[0].device_kind,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "jaxlib": jaxlib.__version__,
        "threads": threads,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(facts.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")).strip()


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what was measured: for each `Site.key` its form and the times of all; nothing of another machine's.

    Args:
      path: the file. One that is damaged, or of another machine, is ignored with a warning; one that is not there is empty.
    """
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, f"it cannot be read ({one_line(error, 100)})")
    try:
        held = json.loads(text)
        made_on, sites = held["machine"], held["sites"]
        good = isinstance(sites, dict) and all(isinstance(one["form"], str) for one in sites.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        return _ignored(path, "it is damaged")
    if not good:
        return _ignored(path, "it is damaged")
    if made_on != machine():
        return _ignored(path, "it was measured on another machine or with other settings")
    return dict(sites)


def write(path: str | os.PathLike[str], sites: Mapping[str, Any]) -> None:
    """Keep what was measured, in one step.

    Args:
      path: the file.
      sites: as `read` returns them.
    """
    write_text(Path(path), json.dumps({"machine": machine(), "sites": dict(sites)}, indent=1, sort_keys=True) + "\n")


def _ignored(path: str | os.PathLike[str], why: str) -> dict[str, Any]:
    said = f"{os.fspath(path)} is not used for the forms of operations: {why}. Rules decide; measure_lowerings makes it anew."
    warnings.warn(said, IgnoredTableWarning, stacklevel=4)
    return {}


def forms_of(name: str, table: Table | None) -> dict[str, str]:
    """Return measured forms by `Site.key`.

    Args:
      name: of the function that was given the table, for errors.
      table: forms, the file that keeps them, or None.

    Raises:
      TypeError: for anything else.
    """
    if table is None:
        return {}
    if isinstance(table, str | os.PathLike):
        return {key: one["form"] for key, one in read(table).items()}
    if not isinstance(table, Mapping) or not all(isinstance(part, str) for pair in table.items() for part in pair):
        raise TypeError(f"{name}: table must be forms by site, from measure_lowerings, or its file; got {described(table)}.")
    return dict(table)
