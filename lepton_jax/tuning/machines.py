"""Figures of accelerators as their makers publish them: dense bfloat16 products, memory, and what lies between devices."""

from typing import NamedTuple


class Machine(NamedTuple):
    """One device, and how it reaches others; all per device.

    Attributes:
      name: of the device.
      flops: a second, of bfloat16 products accumulated in float32, without sparsity.
      memory: bytes.
      bandwidth: bytes a second between memory and the units that compute.
      near: bytes a second to another device of the same host or pod, in one direction.
      node: how many devices are near.
      far: bytes a second to a device of another host.
      source: where the figures are published.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    near: float
    node: int
    far: float
    source: str

    def link(self, devices: int) -> float:
        """Return the bytes a second between neighbours, when so many take part."""
        return self.near if devices <= self.node else self.far


_NETWORK = "one 400 Gb/s InfiniBand port a device"
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("a100", 312e12, 80e9, 2.039e12, 300e9, 8, 25e9, "NVIDIA A100 80GB SXM data sheet; 200 Gb/s a device"),
        Machine("h100", 989e12, 80e9, 3.35e12, 450e9, 8, 50e9, f"NVIDIA H100 SXM data sheet; {_NETWORK}"),
        Machine("h200", 989e12, 141e9, 4.8e12, 450e9, 8, 50e9, f"NVIDIA H200 SXM data sheet; {_NETWORK}"),
        Machine("v5e", 197e12, 16e9, 0.819e12, 100e9, 256, 25e9, "Google Cloud TPU v5e system architecture"),
        Machine("v5p", 459e12, 95e9, 2.765e12, 300e9, 8960, 25e9, "Google Cloud TPU v5p system architecture"),
    )
}
"""By name; half of a published sum over both directions counts as one direction."""
