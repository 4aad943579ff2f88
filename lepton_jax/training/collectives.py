"""What a compiled program sends between devices: read from its text, by kind, dtype and bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.tables import table

_KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_CALL = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\] *\{(.*?)\}")


class Collective(NamedTuple):
    """One operation between devices.

    Attributes:
      kind: "all-gather", "all-reduce", "all-to-all", "collective-permute" or "reduce-scatter".
      dtype: as the compiler writes it: "f32", "s8", "bf16", "u16".
      shape: of the result on each device.
      devices: how many take part in one group.
      bytes: of the result on each device (of a reduce-scatter, of what goes in).
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    devices: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends when the devices form a ring: an all-reduce goes round twice, all others once."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.devices - 1) / self.devices


@checked
def collectives(compiled: jax.stages.Compiled | str) -> list[Collective]:
    """Return what a compiled program sends between devices, in the program's order; one in a loop's body counts once.

    Args:
      compiled: from ``jax.jit(step).lower(*args).compile()``, or its text.

    Example:
      >>> import jax.numpy as jnp
      >>> collectives(jax.jit(jnp.sin).lower(1.0).compile())
      []
      >>> line = "  %g = s8[8,4]{1,0} all-gather(s8[2,4]{1,0} %q), replica_groups=[1,4]<=[4], dimensions={0}"
      >>> [found] = collectives(line)
      >>> found.kind, found.dtype, found.shape, found.bytes, found.sent
      ('all-gather', 's8', (8, 4), 32, 24.0)

    Source: of the bytes in a ring, Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations".
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    return [one for line in (text or "").splitlines() for one in _of_line(line)]


@checked
def sent_table(found: list[Collective]) -> str:
    """Return a line for each kind and dtype: how many there are, their bytes, and what each device sends in a ring.

    Example:
      >>> print(sent_table([Collective("all-gather", "s8", (8, 4), 4, 32)] * 2))
      all-gather  s8  2  64 bytes  48 bytes sent
    """
    sums: dict[tuple[str, str], tuple[int, int, float]] = {}
    for one in found:
        count, size, sent = sums.get((one.kind, one.dtype), (0, 0, 0.0))
        sums[one.kind, one.dtype] = count + 1, size + one.bytes, sent + one.sent
    rows = [
        (kind, dtype, str(count), f"{size:,} bytes", f"{sent:,.0f} bytes sent")
        for (kind, dtype), (count, size, sent) in sorted(sums.items())
    ]
    return table(rows, left=(0, 1))


def _of_line(line: str) -> Iterable[Collective]:
    call = _CALL.search(line)
    if call is None:
        return
    results, kind, started, rest = call.groups()
    arrays = _ARRAY.findall(results)
    if started and len(arrays) > 1 and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # what goes in stands before what comes out
    devices = _group(rest)
    for dtype, axes in arrays:
        shape = tuple(int(size) for size in axes.split(",") if size)
        size = math.prod(shape) * _bits(dtype) // 8 * (devices if kind == "reduce-scatter" else 1)
        yield Collective(kind, dtype, shape, devices, size)


def _group(rest: str) -> int:
    """Return how many devices make one group, in any of the ways in which the compiler writes them."""
    if named := _MESH.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    listed = _LISTED.search(rest)
    return 1 if listed is None else int(listed[2]) if listed[2] else listed[1].count(",") + 1


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 0
