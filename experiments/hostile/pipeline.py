"""Three phases, to be stopped anywhere: a model is trained, pruned and quantized in training, and saved.

    python -m experiments.hostile.pipeline FOLDER
    python -m experiments.hostile.pipeline FOLDER --accident full --phase compressing

Prints a line for each step, goes on from what it finds in the folder, and ends with the same bits however often it was stopped.
With an accident, in the midst of that phase no file can grow any more, or nothing in the folder can be written.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import ArtifactError, Transform, chain, fake_quant, identity, pack, prune, save
from lepton_jax.core import schedules
from lepton_jax.core.files import write_json
from lepton_jax.data import Batch, Split, batches
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    MetricsWriter,
    batch_source,
    classification_loss,
    create,
    fit,
    make_train_step,
)

PHASES = ("training", "compressing", "saving")
ACCIDENTS = ("full", "read-only")
STOPPED, SAYS = 3, "error: "
"""The exit code after an accident that was said in one line, and how that line begins."""
STEPS, SAVES = 40, 20
_PAUSE = 0.01


def model(params: Any, model_state: Any, inputs: Any, *, train: bool, key: Any) -> tuple[Any, Any]:
    """A small network with dropout, whose result depends on every random draw."""
    hidden = jnp.tanh(inputs.reshape(inputs.shape[0], -1) @ params["a"])
    if train:
        hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden, 0)
    return hidden @ params["b"], model_state


def step_by_step(phase: str, number: int, accident: Callable[[str, int], None]) -> None:
    """Say where it is, and let an accident happen there."""
    print(phase, number, flush=True)
    time.sleep(_PAUSE)
    accident(phase, number)


def train(folder: Path, phase: str, transform: Transform, params: Any, accident: Callable[[str, int], None]) -> Any:
    """Train a phase, or the rest of it, with checkpoints and metrics in a folder of its own."""
    rng = np.random.default_rng(0)
    split = Split(images=rng.normal(size=(50, 4, 4, 1)).astype(np.float32), labels=rng.integers(0, 5, 50).astype(np.int32))
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    read = batch_source(lambda start: batches(split, 8, seed=3, start_step=start))

    def batch_at(step: int) -> Batch:
        step_by_step(phase, step, accident)
        return read(step)

    with Checkpoints(folder / phase, run=phase) as checkpoints:
        return fit(
            create(params, {}, tx, transform, jax.random.key(1)),
            make_train_step(classification_loss(model), tx, transform),
            batch_at,
            FitSettings(steps=STEPS, log_every=7, checkpoint_every=5),
            checkpoints=checkpoints,
            metrics=MetricsWriter(folder / f"{phase}.jsonl"),
            resume=True,
        )


def run(folder: Path, accident: Callable[[str, int], None]) -> None:
    """All phases."""
    keys = jax.random.split(jax.random.key(0))
    params = {"a": jax.random.normal(keys[0], (16, 12)) / 4, "b": jax.random.normal(keys[1], (12, 5)) / 4}
    dense = train(folder, "training", identity(), params, accident)
    rule = chain(prune(schedules.polynomial(0.7, begin=5, end=30), gradient="straight_through"), fake_quant(bits=4))
    state = train(folder, "compressing", rule, dense.params, accident)
    packed = {"params": pack(rule, state.params, state.tstate)}

    def apply(variables: Any, images: Any) -> Any:
        return model(variables["params"], {}, images, train=False, key=None)[0]

    for number in range(SAVES):
        step_by_step("saving", number, accident)
        save(folder / "model.lepton", apply, packed, jnp.zeros((2, 4, 4, 1)))
        write_json(folder / "result.json", {"steps": int(state.step), "loss": [0.1] * 5000})


def happening(kind: str, phase: str, folder: Path) -> Callable[[str, int], None]:
    """An accident in the midst of a phase."""

    def happen(at: str, number: int) -> None:
        if (at, number) == (phase, 12):
            if kind == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            else:
                give_up_privileges()
                for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
                    place.chmod(0o555)

    return happen


def give_up_privileges() -> None:
    """Have permissions count, also for the superuser of Linux."""
    if os.geteuid() == 0 and sys.platform == "linux":
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None).capset(header, none):
            raise OSError("the superuser's privileges cannot be given up")


def main() -> None:
    """Run, and end with one line if something cannot be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--accident", choices=ACCIDENTS)
    parser.add_argument("--phase", choices=PHASES)
    options = parser.parse_args()
    accident = happening(options.accident, options.phase, options.folder) if options.accident else lambda phase, number: None
    try:
        run(options.folder, accident)
    except ArtifactError as error:
        print(f"{SAYS}{error}", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
