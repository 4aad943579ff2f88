"""A small run for test_loop.py to kill: ``python resumable_run.py FOLDER STEPS SCAN SECONDS_A_BATCH``.

Prints the step of each batch that is read; writes the final state to FOLDER/final.npz.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import chain, fake_quant, prune
from lepton_jax.core import schedules
from lepton_jax.data import Batch, Split, batches, eval_batches
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    MetricsWriter,
    batch_source,
    classification_loss,
    create,
    fit,
    make_evaluate,
    make_train_step,
    to_arrays,
)


def apply(params, model_state, images, *, train, key):
    hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["a"])
    if train:
        hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden, 0)
        model_state = {"seen": model_state["seen"] + 1}
    return hidden @ params["b"], model_state


def main(folder: Path, steps: int, scan: int, pause: float) -> None:
    rng = np.random.default_rng(0)
    split = Split(images=rng.normal(size=(50, 4, 4, 1)).astype(np.float32), labels=rng.integers(0, 5, 50).astype(np.int32))
    keys = jax.random.split(jax.random.key(0))
    params = {"a": jax.random.normal(keys[0], (16, 12)) / 4, "b": jax.random.normal(keys[1], (12, 5)) / 4}
    transform = chain(prune(schedules.polynomial(0.7, begin=5, end=40), gradient="straight_through"), fake_quant(bits=4))
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    read = batch_source(lambda start: batches(split, 8, seed=3, start_step=start))

    def batch_at(step: int) -> Batch:
        print(step, flush=True)
        time.sleep(pause)
        return read(step)

    state = create(params, {"seen": jnp.int32(0)}, tx, transform, jax.random.key(1))
    settings = FitSettings(steps=steps, log_every=7, evaluate_every=20, checkpoint_every=10, scan=scan)
    with Checkpoints(folder / "checkpoints", run="test") as checkpoints:
        state = fit(
            state,
            make_train_step(classification_loss(apply), tx, transform),
            batch_at,
            settings,
            evaluate=make_evaluate(apply, transform, eval_batches(split, 32)),
            checkpoints=checkpoints,
            metrics=MetricsWriter(folder / "metrics.jsonl"),
            resume=True,
        )
    np.savez(folder / "final.npz", **{path.replace("/", "|"): leaf for path, leaf in to_arrays(state).items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
