"""``lepton plan-memory``: what training a decoder on many devices needs, on paper."""

import dataclasses
import itertools
from typing import Any, get_args

import jax

from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core.errors import check_option
from lepton_jax.core.tables import table
from lepton_jax.training import collectives, data_mesh
from lepton_jax.tuning import MACHINES, MemoryPlan, compiled_step, plan_memory
from lepton_jax.tuning.memory_plan import DECODERS, Technique

_PARTS = ("parameters", "moments", "state", "gradients", "view", "gathered", "activations", "total")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanMemory(Command):
    """Plan the memory, the wire and the least time of a training step of a decoder under full FSDP with Adam.

    Nothing is executed; --compile compiles each step for devices of this host and shows the compiler's figures beside.

    Examples:
      lepton plan-memory
      lepton plan-memory --model 7b --devices 8 64 --technique dense qlora --machine h200 --length 4096
      XLA_FLAGS=--xla_force_host_platform_device_count=8 lepton plan-memory --model 1b --devices 8 --compile
    """

    model: tuple[str, ...] = tuple(DECODERS)
    """Of 1b, 7b, 70b parameters."""
    devices: tuple[int, ...] = (8, 64, 256)
    """How many."""
    technique: tuple[str, ...] = get_args(Technique)
    """What is trained: dense, prune (90 %), quantize (4 bits), lora (rank 16), qlora (rank 16, 4 bits)."""
    machine: str = "h100"
    """Which device: a100, h100, h200, v5e, v5p; their makers' figures."""
    batch: int = 1
    """Sequences a device."""
    length: int = 2048
    """Tokens of a sequence."""
    compile: bool = False
    """Compile the steps for devices of this host, as many as are asked for."""

    def __post_init__(self) -> None:
        for name, given, options in (("--model", self.model, tuple(DECODERS)), ("--machine", (self.machine,), tuple(MACHINES))):
            if unknown := [one for one in given if one not in options]:
                raise ValueError(f"{name} must be of {', '.join(options)}; got {', '.join(unknown)}.")
        for one in self.technique:
            check_option("--technique", one, Technique)

    def answer(self) -> Answer:
        machine, facts = MACHINES[self.machine], []
        heads = ("model", "devices", "technique", *_PARTS, "all kept", "fits", "collectives", "sent", "least step")
        rows: list[tuple[str, ...]] = [(*heads, *(("compiled state", "sent") if self.compile else ()))]
        sizes: dict[str, Any] = {"batch": self.batch, "length": self.length}
        for name, count, technique in itertools.product(self.model, self.devices, self.technique):
            plan = plan_memory(DECODERS[name], machine, technique=technique, devices=count, **sizes)  # type: ignore[arg-type]
            fits = plan.total <= machine.memory
            said = compiled(name, count, technique, sizes) if self.compile else {}
            about = {"model": name, "devices": count, "technique": technique, "fits": fits}
            facts.append({**about, **dataclasses.asdict(plan), "total": plan.total, "seconds": plan.seconds, **said})
            rows.append((name, str(count), technique, *_line(plan), "yes" if fits else "no", *_wire(plan), *_compiled(said)))
        head = f"{machine.name}: {machine.flops / 1e12:g} TFLOP/s, {machine.memory / 1e9:g} GB ({machine.source})"
        notes = (
            f"GB a device; {self.batch} sequence(s) of {self.length} tokens each. 'all kept': activations if no block is "
            "computed again. 'sent': GB a device and step, in a ring. 'least step': seconds with all overlapped, and none."
        )
        return Answer({"machine": machine._asdict(), **sizes, "plans": facts}, f"{head}\n{notes}\n{table(rows, left=(0, 2))}")


def compiled(name: str, devices: int, technique: Any, sizes: dict[str, Any]) -> dict[str, float]:
    """Return the compiler's figures of a step: bytes of its arguments on a device, and what a device sends.

    Raises:
      ValueError: if this host has not so many devices.
    """
    there = jax.devices()
    if len(there) < devices:
        raise ValueError(
            f"--compile: this host has {len(there)} device(s), {devices} are asked for; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}, or leave --compile out."
        )
    step = compiled_step(DECODERS[name], data_mesh(there[:devices]), technique=technique, **sizes)
    depth = DECODERS[name].depth
    sent = sum(one.sent * (depth if _repeated(one.shape, name) else 1) for one in collectives(step))
    figures: Any = step.memory_analysis()
    return {"compiled_state": figures.argument_size_in_bytes, "compiled_sent": sent}


def _repeated(shape: tuple[int, ...], name: str) -> bool:
    """Whether a collective of this shape is in a block, which the program has once and runs `depth` times."""
    model = DECODERS[name]
    return model.vocabulary not in shape and len(shape) < 3


def _line(plan: MemoryPlan) -> list[str]:
    return [f"{getattr(plan, part) / 1e9:.2f}" for part in (*_PARTS, "kept")]


def _wire(plan: MemoryPlan) -> list[str]:
    low, high = plan.seconds
    return [str(sum(plan.counts.values())), f"{plan.sent / 1e9:.2f}", f"{low:.3g}-{high:.3g}"]


def _compiled(said: dict[str, float]) -> list[str]:
    return [f"{value / 1e9:.2f}" for value in said.values()]
