"""One process of a run for `kills`.

Its settings are JSON: folder, steps, which process is killed before which step (0: none). Process 0 writes what it sees
at the end.
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.processes import home
from lepton_jax import prune
from lepton_jax.core import schedules
from lepton_jax.training import Checkpoints, FitSettings, create, data_mesh, fit, fsdp, make_train_step, multihost

_MOMENT = 0.05
"""Seconds that a batch takes, so that checkpoints are written beside the steps as they are in a longer run."""


def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """Return the cross entropy of a perceptron."""
    logits = jnp.tanh(batch["x"] @ params["a"]) @ params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), (model_state, {})


def run(words: str) -> None:
    """Train, or go on, and write."""
    given = json.loads(words)
    steps, folder = given["steps"], Path(given["folder"])
    number = multihost.initialize(heartbeat=10, timeout=120)
    placement, rows = fsdp(data_mesh()), multihost.own_rows(8)

    def batch_at(step: int) -> Any:
        time.sleep(_MOMENT)
        if step == given["step"] > 0 and number == given["process"]:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng(step)
        batch = {"x": rng.normal(size=(8, 8)).astype(np.float32), "y": rng.integers(0, 4, 8).astype(np.int32)}
        return multihost.joined({name: leaf[rows] for name, leaf in batch.items()}, placement.devices)

    keys = jax.random.split(jax.random.key(1))
    params = {"a": jax.random.normal(keys[0], (8, 16)), "b": jax.random.normal(keys[1], (16, 4))}
    tx, transform = optax.adam(1e-2), prune(schedules.polynomial(0.7, begin=1, end=3 * steps // 4), scope="global")
    state = create(params, {}, tx, transform, jax.random.key(2), placement=placement)
    settings = FitSettings(steps=steps, log_every=5, checkpoint_every=5, progress=False)
    step = make_train_step(loss_fn, tx, transform)
    with Checkpoints(folder / "checkpoints", run="kills") as checkpoints:
        state = fit(state, step, batch_at, settings, checkpoints=checkpoints, resume=True, placement=placement)
    whole = jax.sharding.NamedSharding(placement.devices, jax.sharding.PartitionSpec())
    seen = home(jax.jit(lambda tree: tree, out_shardings=whole)((state.params, state.tstate.masks, state.opt_state)))
    if multihost.is_first():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(seen)]
        digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
        zeros = [int((~np.asarray(mask)).sum()) for mask in jax.tree.leaves(seen[1])]
        (folder / "result.json").write_text(json.dumps({"digest": digest, "zeros": zeros, "step": int(state.step)}))
