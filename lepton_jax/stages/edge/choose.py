"""Where to cut a model between the edge and the cloud: every cut, and what it has to beat."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.tables import table
from lepton_jax.stages.edge.profile import Profile
from lepton_jax.stages.edge.wire import Wire
from lepton_jax.stages.plan import Plan


@checked
@dataclasses.dataclass(frozen=True)
class Link:
    """A connection.

    Args:
      mbit: its rate, in 10^6 bits a second.
      rtt_ms: milliseconds there and back.

    Raises:
      ValueError: for a rate of 0 or less.

    Example:
      >>> Link(mbit=8, rtt_ms=10).seconds(1_000_000)
      1.01
    """

    mbit: float
    rtt_ms: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mbit) and self.mbit > 0):
            raise ValueError(
                f"Link: mbit must be above 0, in 10^6 bits a second; got {self.mbit}. Nothing crosses such a link."
            )
        if not (math.isfinite(self.rtt_ms) and self.rtt_ms >= 0):
            raise ValueError(f"Link: rtt_ms must be 0 or more; got {self.rtt_ms}.")

    def seconds(self, count: float) -> float:
        """Return what so many bytes take there, and a short answer back."""
        return self.rtt_ms / 1e3 + 8 * count / (1e6 * self.mbit)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One way to share the work.

    Attributes:
      name: what is sent.
      place: before which stage the model is cut; 0 sends the inputs, the number of stages nothing.
      edge, link, cloud: seconds of each.
      bytes: that cross.

    Example:
      >>> Option(name="the input, raw", place=0, edge=0.0, link=0.5, cloud=0.25, bytes=784.0).seconds
      0.75
    """

    name: str
    place: int
    edge: float
    link: float
    cloud: float
    bytes: float

    @property
    def seconds(self) -> float:
        """From the input to the answer."""
        return self.edge + self.link + self.cloud


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """All ways, and the fastest; it prints as a table.

    Attributes:
      options: the baselines, then each cut.

    Example:
      >>> near = Option(name="nothing: all at the edge", place=1, edge=0.5, link=0.0, cloud=0.0, bytes=0.0)
      >>> print(Choice(options=(near,)))
         what crosses              bytes  edge ms  link ms  cloud ms  all ms
      *  nothing: all at the edge      0   500.00     0.00      0.00  500.00
    """

    options: tuple[Option, ...]

    @property
    def best(self) -> Option:
        """The fastest way."""
        return min(self.options, key=lambda one: one.seconds)

    def __str__(self) -> str:
        head = ("", "what crosses", "bytes", "edge ms", "link ms", "cloud ms", "all ms")
        rows = [
            (
                "*" if one is self.best else "",
                one.name,
                f"{one.bytes:,.0f}",
                *(f"{1e3 * value:.2f}" for value in (one.edge, one.link, one.cloud, one.seconds)),
            )
            for one in self.options
        ]
        return table([head, *rows], left=(0, 1))


@checked
def choose(plan: Plan, *, edge: Profile, cloud: Profile, link: Link, wire: Wire | None = None) -> Choice:
    """Compare all cuts of a plan with the model at the edge, and with sending the inputs to the cloud.

    A cut before stage k takes the edge's stages before k, coding, the link, decoding and the cloud's stages from k on. Inputs
    are sent raw, and as JPEG where the profile knows its size.

    Args:
      plan: of the model.
      edge: the profile of the machine at the edge.
      cloud: that of the other one.
      link: between them.
      wire: how values cross; by default in 4 bits. If the edge's profile has not measured it, bytes are those of the
        levels without entropy coding, and coding takes no time.

    Raises:
      ValueError: for profiles of other numbers of stages.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((64, 2)), "b": jnp.ones((2, 99))}
      >>> made = stages.plan(net, v, jnp.ones((1, 64)), count=2)
      >>> slow, fast = Profile(seconds=(0.01, 0.9)), Profile(seconds=(0.001, 0.09))
      >>> choose(made, edge=slow, cloud=fast, link=Link(mbit=0.01), wire=Wire(bits=4)).best.name
      'before stage 1'

    Source: Y. Kang et al., "Neurosurgeon: collaborative intelligence between the cloud and mobile edge", 2017.
    """
    for name, one in (("edge", edge), ("cloud", cloud)):
        if len(one.seconds) != len(plan):
            raise ValueError(
                f"choose: the plan has {len(plan)} stages, the {name}'s profile {len(one.seconds)}; measure it anew."
            )
    bits = (Wire() if wire is None else wire).bits
    measured, decoded = edge.wires.get(bits), cloud.wires.get(bits)
    options = [Option(name="nothing: all at the edge", place=len(plan), edge=sum(edge.seconds), link=0.0, cloud=0.0, bytes=0.0)]
    raw = {"raw": float(plan.stages_of[0].bytes_in)} if not edge.images else edge.images
    for name, size in raw.items():
        options.append(
            Option(name=f"the input, {name}", place=0, edge=0.0, link=link.seconds(size), cloud=sum(cloud.seconds), bytes=size)
        )
    for place in range(1, len(plan)):
        size, coding = (measured[place - 1][0], measured[place - 1][1]) if measured else (_levels(plan, place, bits), 0.0)
        decoding = decoded[place - 1][2] if decoded else 0.0
        options.append(
            Option(
                name=f"before stage {place}",
                place=place,
                edge=sum(edge.seconds[:place]) + coding,
                link=link.seconds(size),
                cloud=decoding + sum(cloud.seconds[place:]),
                bytes=size,
            )
        )
    return Choice(options=tuple(options))


def _levels(plan: Plan, place: int, bits: int) -> float:
    """Bytes of a cut's values, the floating ones in so many bits."""
    total = 0.0
    for shape, dtype in plan.stages_of[place].carried:
        if dtype.startswith("key"):
            total += 8 * math.prod(shape)
        else:
            total += math.prod(shape) * (bits / 8 if "float" in dtype else np.dtype(dtype).itemsize)
    return total
