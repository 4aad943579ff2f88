"""Branches and units side by side on two devices of this machine, by the clock: what they could gain is waiting."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.single_point.layers import drawn, images
from lepton_jax import stages
from lepton_jax.core.timing import interleaved
from lepton_jax.core.typing import Array
from lepton_jax.models import CNN

Run = Callable[[], Any]


def side_by_side(kind: str, seed: int, rounds: int) -> dict[str, float]:
    """How many times faster something is on two devices, by the clock, and the same program again."""
    whole, apart = BRANCHES[kind](seed, _two())
    taken = interleaved({"whole": whole, "apart": apart, "again": whole}, rounds=4 * rounds)
    return {
        "whole_ms": 1e3 * taken["whole"],
        "apart_ratio": taken["whole"] / taken["apart"],
        "again": taken["whole"] / taken["again"],
    }


def _two() -> list[jax.Device]:
    devices = jax.devices()[:2]
    if len(devices) < 2:
        raise ValueError(
            "branches: need two devices; run python -m experiments.single_point, which makes two of the processor, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=2."
        )
    return devices


def _towers(
    layer: Callable[[Array, Array], Array], shape: tuple[int, ...], size: tuple[int, ...], seed: int, devices: list[jax.Device]
) -> Any:
    rng = np.random.default_rng(seed)
    v = [[jnp.asarray(rng.normal(size=shape) / 20, jnp.float32) for _ in range(3)] for _ in range(4)]
    x = jnp.asarray(rng.normal(size=size), jnp.float32)

    def tower(ws: Any, x: Array) -> Array:
        for w in ws:
            x = layer(w, x)
        return x

    run, one = jax.jit(lambda v, x: [tower(ws, x) for ws in v]), jax.jit(tower)
    placed = [jax.device_put((ws, x), devices[number % len(devices)]) for number, ws in enumerate(v)]
    return partial(run, v, x), lambda: [one(*given) for given in placed]


def _pipelined(seed: int, devices: list[jax.Device]) -> Any:
    """Eight batches through the net, and through two units on a device each."""
    net, x = CNN(), images(seed, 32)
    variables = drawn(net, seed, x)
    batches = [x] * 8
    run = jax.jit(net.apply)
    apart = stages.pipeline(stages.plan(net.apply, variables, x, count=2), net.apply, variables, devices)
    return lambda: [run(variables, one) for one in batches], lambda: list(apart(batches))


def _convolve(kernel: Array, x: Array) -> Array:
    return jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


BRANCHES: Mapping[str, Callable[[int, list[jax.Device]], tuple[Run, Run]]] = {
    "4 towers of 3 convolutions": partial(_towers, _convolve, (3, 3, 32, 32), (8, 28, 28, 32)),
    "4 perceptrons of 3 layers": partial(_towers, lambda w, x: jax.nn.relu(x @ w), (512, 512), (64, 512)),
    "8 batches through 2 units": _pipelined,
}
