"""Measure what pruning costs in a training step, against the same step without.

    python -m experiments.benchmarks.pruning_step [--models mlp cnn] [--rounds 8] [--compile-rounds 3]

All steps are jitted, donate their state and see the same batches. They run in turns of ten, so that each turn has as many
steps whose masks are due. The schedule rises at every step over the whole benchmark, so that a due step always makes new masks.
Printed: the median time of a step, of its ratio to the plain step's of the same turn, the time to compile, the fraction pruned
and the loss at the end. Compiling is measured in seconds of the process on all cores together, which other work disturbs less.
RigL and SET train as they should, under `masked_moments`; their ratio is to the plain optimiser's step all the same.
"""

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.benchmarks.harness import Run, arguments, noise, processor_seconds
from lepton_jax import Transform, identity, prune
from lepton_jax.core.schedules import polynomial
from lepton_jax.core.timing import against
from lepton_jax.data import Batch
from lepton_jax.pruning import erk
from lepton_jax.pruning.sparse_training import masked_moments, rigl, set_
from lepton_jax.training import classification_loss, create, linen_apply, make_train_step

TURN = 10
"""Steps a turn; one of them is due where masks are made every ten steps."""
TARGETS = {"mlp": {"every 10": 1.10, "every step": 2.0}, "cnn": {"every 10": 1.05}}
COMPILE_TARGET = 1.3


class MLP(nn.Module):
    """Four hidden layers of 1024."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = x.reshape(x.shape[0], -1)
        for _ in range(4):
            x = nn.relu(nn.Dense(1024)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for features in (32, 64):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def transforms(steps: int) -> dict[str, Transform]:
    """What is compared, by name; the sparsity rises from 0 to 0.8 over `steps`."""
    rising, by_erk = polynomial(0.8, begin=0, end=steps + 1), functools.partial(erk, power=1.0)
    regrown = functools.partial(prune, rising, allocation=by_erk, gradient="straight_through")
    return {
        "plain": identity(),
        "every 10": prune(rising, allocation=by_erk, interval=10),
        "every step": prune(rising, allocation=by_erk),
        "straight-through, every 10": regrown(interval=10),
        "straight-through, every step": regrown(interval=1),
        "global, every 10": prune(rising, scope="global", interval=10),
        "RigL, every 10": rigl(0.8, jax.random.key(0), end=steps + 1, interval=10),
        "SET, every 10": set_(0.8, jax.random.key(0), end=steps + 1, interval=10),
    }


def measure(module: nn.Module, batches: list[Batch], rounds: int, compile_rounds: int) -> None:
    """Print the table of one model."""
    kinds = transforms((rounds + 1) * TURN)
    adam, params = optax.adam(1e-3), module.init(jax.random.key(0), batches[0].images)["params"]
    tx = {name: masked_moments(adam) if name.startswith(("RigL", "SET")) else adam for name in kinds}
    loss_fn = classification_loss(linen_apply(module))
    states = {name: create(params, {}, tx[name], kind, jax.random.key(1)) for name, kind in kinds.items()}
    compiling: dict[str, list[float]] = {name: [] for name in kinds}
    steps: dict[str, Any] = {}
    for _ in range(compile_rounds):
        for name, kind in kinds.items():
            lowered = make_train_step(loss_fn, tx[name], kind).lower(states[name], batches[0])  # type: ignore[attr-defined]
            took, steps[name] = processor_seconds(lowered.compile)
            compiling[name].append(took)
    runs = {name: Run(step, states[name], batches) for name, step in steps.items()}
    taken, compiled = against(runs, "plain", rounds=rounds), statistics.median(compiling["plain"])
    print(f"{'':30} {'step':>10} {'ratio':>6} {'compile':>10} {'ratio':>6} {'pruned':>7} {'loss':>7}")
    for name in kinds:
        (seconds, ratio), compile_time = taken[name], statistics.median(compiling[name])
        masks = getattr(runs[name].state.tstate, "masks", {})
        kept, size = (sum(int(f(m)) for m in masks.values()) for f in (jnp.sum, jnp.size))
        print(
            f"{name:30} {seconds / TURN * 1e3:7.2f} ms {ratio:6.3f} {compile_time * 1e3:7.0f} ms "
            f"{compile_time / compiled:6.2f} {1 - kept / max(size, 1) if masks else 0:7.3f} {runs[name].metrics['loss']:7.4f}",
            flush=True,
        )


def main() -> None:
    """Measure the models that are asked for."""
    options = arguments(
        __doc__,
        models=(["mlp", "cnn"], "which"),
        rounds=(8, "turns of ten steps; the medians are over these"),
        compile_rounds=(3, "turns of compiling"),
        batch_size=(128, "of both models"),
    )
    jax.config.update("jax_enable_compilation_cache", False)
    batches = noise((28, 28, 1), TURN, options.batch_size)
    for name in options.models:
        print(f"\n{name}, batch {options.batch_size}; to reach: {TARGETS[name]}, compile {COMPILE_TARGET}")
        measure({"mlp": MLP, "cnn": CNN}[name](), batches, options.rounds, options.compile_rounds)


if __name__ == "__main__":
    main()
