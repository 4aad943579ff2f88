"""What a machine takes for the stages of a model, and for the wire at its cuts."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.edge.wire import Wire, fit
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.seconds import stage_seconds

_QUALITY = 90


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What a machine takes.

    Args:
      seconds: of each stage.
      wires: for a number of bits, at each cut: bytes that cross, seconds to code them, and seconds to decode them.
      images: bytes of the inputs as they would be sent otherwise, by name.

    Raises:
      ValueError: for seconds below 0.

    Example:
      >>> Profile(seconds=(0.1, 0.2)).times(3).seconds
      (0.30000000000000004, 0.6000000000000001)
    """

    seconds: tuple[float, ...]
    wires: Mapping[int, tuple[tuple[float, float, float], ...]] = dataclasses.field(default_factory=dict)
    images: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seconds or not all(math.isfinite(one) and one >= 0 for one in self.seconds):
            raise ValueError(f"Profile: seconds must be 0 or more, one a stage; got {self.seconds}.")

    def times(self, slower: float) -> Profile:
        """Return the profile of a machine that is so many times slower."""
        wires = {bits: tuple((n, slower * a, slower * b) for n, a, b in rows) for bits, rows in self.wires.items()}
        return dataclasses.replace(self, seconds=tuple(slower * one for one in self.seconds), wires=wires)


@checked
def profile(plan: Plan, apply: Apply, variables: PyTree, *inputs: Any, wires: Sequence[Wire] = (), rounds: int = 3) -> Profile:
    """Measure this machine: each stage, and coding and decoding at each cut, on the given examples.

    Args:
      plan: of the model; each of its cuts is one that `choose` considers.
      apply: the function.
      variables: its variables.
      *inputs: the examples of one request; the tables of the wire are fitted to them, too.
      wires: what may be chosen.
      rounds: how often each is timed; the least time counts.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> found = profile(stages.plan(net, v, x, count=2), net, v, x, wires=[Wire(bits=4)])
      >>> len(found.seconds), len(found.wires[4])
      (2, 1)
    """
    seconds = stage_seconds(plan, apply, variables, *inputs, rounds=rounds)
    carried, found = inputs, {wire.bits: list[tuple[float, float, float]]() for wire in wires}
    for unit, part in list(zip(plan.stages(apply), plan.split(variables)))[:-1]:
        carried = jax.jit(unit)(part, *carried)
        for wire in wires:
            found[wire.bits].append(_wired([np.asarray(value) for value in carried], wire, rounds))
    return Profile(seconds=seconds, wires={bits: tuple(rows) for bits, rows in found.items()}, images=image_bytes(inputs))


def image_bytes(inputs: Sequence[Any]) -> dict[str, float]:
    """Bytes of the first input sent as it is: its elements in bytes, and for pictures in JPEG.

    Example:
      >>> image_bytes([np.zeros((2, 8, 8, 3))])["raw"]
      384.0
    """
    images = np.asarray(inputs[0])
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not np.issubdtype(images.dtype, np.floating) or not images.size:
        return {"raw": float(sum(np.asarray(one).nbytes for one in inputs))}
    found = {"raw": float(images.size)}
    try:
        image_files = import_extra("PIL.Image", "data")
    except ImportError:
        return found
    low, high = float(np.nanmin(images)), float(np.nanmax(images))
    pixels = np.clip(np.nan_to_num((images - low) / max(high - low, 1e-9)) * 255, 0, 255).astype(np.uint8)
    size = 0
    for picture in pixels:
        file = io.BytesIO()
        image_files.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "JPEG", quality=_QUALITY)
        size += len(file.getvalue())
    return {**found, f"JPEG {_QUALITY}": float(size)}


def _wired(values: Sequence[np.ndarray], wire: Wire, rounds: int) -> tuple[float, float, float]:
    coders = [fit(value, wire) for value in values]
    coding = decoding = math.inf
    sent: list[bytes] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        sent = [coder.encode(value) for coder, value in zip(coders, values)]
        middle = time.perf_counter()
        for coder, data in zip(coders, sent):
            coder.decode(data)
        coding, decoding = min(coding, middle - begin), min(decoding, time.perf_counter() - middle)
    return float(sum(map(len, sent))), coding, decoding
