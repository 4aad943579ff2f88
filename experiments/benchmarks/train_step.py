"""Measure what a training step costs against a hand-written Flax and optax step.

    python -m experiments.benchmarks.train_step [--repeats 30] [--batch-size 128]

Both steps are jitted, donate their state, and draw nothing at random; they are run in turns, and in the other order every other
time. Printed: medians of the time a step, and the median of the turns' ratios. Plain training with
`identity` must cost what the hand-written step costs, within 3 %.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState as FlaxState

from lepton_jax import identity
from lepton_jax.data import Batch
from lepton_jax.models import LeNet5, LeNet300
from lepton_jax.training import classification_loss, create, linen_apply, make_train_step

LIMIT = 1.03


def hand_written(state: FlaxState, batch: Batch) -> tuple[FlaxState, dict[str, Any]]:
    """The step that the Flax documentation shows, with loss and error."""

    def loss_fn(params: Any) -> tuple[Any, Any]:
        logits = state.apply_fn({"params": params}, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), logits

    (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss, "error": jnp.mean(logits.argmax(-1) != batch.labels)}


def seconds_a_step(step: Callable[[Any, Any], Any], state: Any, batches: Sequence[Batch]) -> tuple[float, Any]:
    """Run one step for each batch; return the time of one, and the state."""
    jax.block_until_ready(state)
    start = time.perf_counter()
    for batch in batches:
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / len(batches), state


def compare(module: nn.Module, batches: Sequence[Batch], repeats: int) -> tuple[float, float, float]:
    """Return the medians of the hand-written step and of ours, in seconds, and the median of their ratios."""
    params = module.init(jax.random.key(0), batches[0].images)["params"]
    tx = optax.adam(1e-3)
    ours = make_train_step(classification_loss(linen_apply(module)), tx, identity())
    steps: dict[str, Callable[[Any, Any], Any]] = {"hand": jax.jit(hand_written, donate_argnums=0), "ours": ours}
    states: dict[str, Any] = {
        "hand": FlaxState.create(apply_fn=module.apply, params=jax.tree.map(jnp.copy, params), tx=tx),
        "ours": create(params, {}, tx, identity(), jax.random.key(1)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name in sorted(steps, reverse=turn % 2 == 0):
            took, states[name] = seconds_a_step(steps[name], states[name], batches)
            if turn:  # the first turn compiles
                times[name].append(took)
    hand, our = np.array(times["hand"]), np.array(times["ours"])
    return float(np.median(hand)), float(np.median(our)), float(np.median(our / hand))


def main() -> None:
    """Measure an MLP and a small CNN, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="turns; the medians are over these")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.batch_size, 28, 28, 1)
    batches = [
        Batch(rng.random(shape, np.float32), rng.integers(0, 10, shape[0]).astype(np.int32), np.ones(shape[0], bool))
        for _ in range(options.steps)
    ]
    print(f"{'model':14} {'hand-written':>14} {'lepton_jax':>14} {'ratio':>7}   within {LIMIT:.2f}")
    for name, module in (("LeNet-300-100", LeNet300()), ("small LeNet-5", LeNet5(features=(8, 16, 64)))):
        hand, our, ratio = compare(module, batches, options.repeats)
        print(f"{name:14} {hand * 1e3:11.3f} ms {our * 1e3:11.3f} ms {ratio:7.3f}   {'yes' if ratio <= LIMIT else 'NO'}")


if __name__ == "__main__":
    main()
