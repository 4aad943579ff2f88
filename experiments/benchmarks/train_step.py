"""Measure what a training step costs against a hand-written Flax and optax step.

    python -m experiments.benchmarks.train_step [--repeats 30] [--batch-size 128]

Both steps are jitted, donate their state, and draw nothing at random; they are run in turns, and in the other order every other
time. Printed: medians of the time a step, and the median of the turns' ratios. Plain training with
`identity` must cost what the hand-written step costs, within 3 %.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState as FlaxState

from experiments.benchmarks.harness import Run, arguments, noise, yes
from lepton_jax import identity
from lepton_jax.core.timing import against
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
    runs = {name: Run(steps[name], states[name], batches) for name in steps}
    taken = against(runs, "hand", rounds=repeats)
    return taken["hand"][0] / len(batches), taken["ours"][0] / len(batches), taken["ours"][1]


def main() -> None:
    """Measure an MLP and a small CNN, and print the table."""
    options = arguments(
        __doc__,
        repeats=(30, "turns; the medians are over these"),
        batch_size=(128, "of both models"),
        steps=(20, "steps a turn"),
    )
    batches = noise((28, 28, 1), options.steps, options.batch_size)
    print(f"{'model':14} {'hand-written':>14} {'lepton_jax':>14} {'ratio':>7}   within {LIMIT:.2f}")
    for name, module in (("LeNet-300-100", LeNet300()), ("small LeNet-5", LeNet5(features=(8, 16, 64)))):
        hand, our, ratio = compare(module, batches, options.repeats)
        print(f"{name:14} {hand * 1e3:11.3f} ms {our * 1e3:11.3f} ms {ratio:7.3f}   {yes(ratio <= LIMIT)}")


if __name__ == "__main__":
    main()
