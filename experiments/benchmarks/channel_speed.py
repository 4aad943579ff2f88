"""What removing half the channels gains: forward and gradient, the shrunk model against the dense one, interleaved.

    python -m experiments.benchmarks.channel_speed --model resnet20 --batches 1 32 128

Prints medians and ratios, good or bad; and what the rewriting itself costs: a plan that removes nothing against plain jit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.harness import arguments, processor_seconds
from lepton_jax.core.timing import interleaved
from lepton_jax.core.typing import PyTree
from lepton_jax.models import ResNet, ResNetCifar
from lepton_jax.pruning.channels import Plan, Random, plan


def gradient_of(apply: Callable[..., Any]) -> Callable[..., PyTree]:
    """The gradient of a train-mode cross-entropy."""

    def loss(params: PyTree, rest: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = apply({"params": params, **rest}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.jit(jax.grad(loss))


def compiled(function: Callable[..., Any], *args: Any) -> tuple[float, Callable[..., Any]]:
    """The seconds of processor time that tracing and compiling took, and the compiled function."""
    return processor_seconds(lambda: jax.jit(function).lower(*args).compile())


def measure(model: Any, variables: PyTree, made: Plan, batch: int, size: int, rounds: int) -> None:
    """Print the times of dense and shrunk, forward and gradient."""

    def train(v: PyTree, x: jax.Array) -> Any:
        return model.apply(v, x, train=True, mutable=["batch_stats"])

    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, size, size, 3)), jnp.float32)
    labels = jnp.zeros(batch, jnp.int32)
    small = made.shrink(variables)
    forwards = {"dense": (model.apply, variables), "shrunk": (made.rewrite(model.apply), small)}
    steps = {"dense": (train, variables), "shrunk": (made.rewrite(train), small)}
    runs = {}
    for name, (apply, v) in forwards.items():
        _, run = compiled(apply, v, x)
        runs[f"{name} forward"] = partial(run, v, x)
    for name, (apply, v) in steps.items():
        rest = {"batch_stats": v["batch_stats"]}
        _, step = compiled(gradient_of(apply), v["params"], rest, x, labels)
        runs[f"{name} gradient"] = partial(step, v["params"], rest, x, labels)
    seconds = interleaved(runs, rounds=rounds, warmup=1)
    for what in ("forward", "gradient"):
        dense, shrunk = seconds[f"dense {what}"], seconds[f"shrunk {what}"]
        took = f"dense {1e3 * dense:9.2f} ms, shrunk {1e3 * shrunk:9.2f} ms, {dense / shrunk:5.2f} times as fast"
        print(f"batch {batch:4d} {what:8s}: {took}", flush=True)


def measure_identity(model: Any, variables: PyTree, x: jax.Array, rounds: int) -> None:
    """Print what the rewriting costs: compile and step of a plan that removes nothing, against plain jit."""
    nothing = plan(model.apply, variables, x, fraction=0.0)
    compiled(lambda v, x: model.apply(v, x), variables, x)  # What is imported and cached on first use is no part of either.
    plain_seconds, plain = compiled(model.apply, variables, x)
    same_seconds, same = compiled(nothing.rewrite(model.apply), variables, x)
    seconds = interleaved({"plain": lambda: plain(variables, x), "same": lambda: same(variables, x)}, rounds=rounds)
    print(
        f"nothing removed: compile {same_seconds / plain_seconds:.2f} times plain jit's, "
        f"step {seconds['same'] / seconds['plain']:.3f} times",
        flush=True,
    )


def main() -> None:
    """Measure one model."""
    options = arguments(
        __doc__,
        model=(("resnet20", "resnet18"), "which"),
        batches=([1, 32, 128], "sizes of a batch"),
        rounds=(10, "calls of each; medians are over these"),
    )
    model = ResNetCifar() if options.model == "resnet20" else ResNet(classes=10, stem="small")
    size = 32
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: jnp.asarray(0.1 * np.abs(rng.standard_normal(s.shape)) + 0.01, s.dtype), shapes)
    x = jnp.zeros((1, size, size, 3))
    made = plan(model.apply, variables, x, fraction=0.5, criterion=Random(key=jax.random.key(0)))
    print(f"{options.model}, {size} x {size}, half the channels: {str(made).splitlines()[0]}", flush=True)
    measure_identity(model, variables, x, options.rounds)
    for batch in options.batches:
        measure(model, variables, made, batch, size, options.rounds)


if __name__ == "__main__":
    main()
