"""One process of a run for test_multihost.py: ``python placed_run.py PROCESS PROCESSES PORT FOLDER STEPS KILL_AT [DATA]``.

Writes what process 0 sees at the end to FOLDER/result.json; process 1 kills itself before step KILL_AT, unless that is 0. With
DATA ("map" or "loader") batches come from grain, and each process writes which examples it read to FOLDER/read_PROCESS.json.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import prune
from lepton_jax.core import schedules
from lepton_jax.training import Checkpoints, FitSettings, batch_source, create, data_mesh, fit, fsdp, make_train_step, multihost


def loss_fn(params, model_state, batch, key):
    logits = jnp.tanh(batch["x"] @ params["a"]) @ params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), (model_state, {})


class Examples:
    """A source of grain, of 32 examples."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        return {"x": rng.normal(size=8).astype(np.float32), "y": np.int32(rng.integers(0, 4)), "index": np.int32(index)}


def own_batches(data, process, processes):
    """This process's part of each batch of 8, by step."""
    if data == "map":
        parts = grain.MapDataset.source(Examples()).seed(3).shuffle().repeat().batch(8 // processes)
        return lambda number: parts[number * processes + process]
    sampler = grain.samplers.IndexSampler(32, grain.sharding.ShardByJaxProcess(drop_remainder=True), shuffle=True, seed=3)
    batches = [grain.transforms.Batch(8 // processes, drop_remainder=True)]
    loader = grain.DataLoader(data_source=Examples(), sampler=sampler, operations=batches)
    return batch_source(lambda number: itertools.islice(loader, number, None))


def main(process, processes, port, folder, steps, kill_at, data=None):
    assert multihost.initialize(f"127.0.0.1:{port}", processes, process, heartbeat=10, timeout=60) == process

    placement, rows = fsdp(data_mesh()), multihost.own_rows(8)

    def batch_at(number):
        if number == kill_at > 0 and process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng(number)
        batch = {"x": rng.normal(size=(8, 8)).astype(np.float32), "y": rng.integers(0, 4, 8).astype(np.int32)}
        return multihost.joined({name: leaf[rows] for name, leaf in batch.items()}, placement.mesh)

    if data:
        own, read = own_batches(data, process, processes), []

        def batch_at(number):
            batch = dict(own(number))
            read.append(batch.pop("index").tolist())
            Path(folder).parent.joinpath(f"read_{process}.json").write_text(json.dumps(read))
            return multihost.joined(batch, placement.mesh)

    keys = jax.random.split(jax.random.key(1))
    params = {"a": jax.random.normal(keys[0], (8, 16)), "b": jax.random.normal(keys[1], (16, 4))}
    tx, transform = optax.adam(1e-2), prune(schedules.polynomial(0.7, begin=1, end=5), scope="global")
    state = create(params, {}, tx, transform, jax.random.key(2), placement=placement)
    step = make_train_step(loss_fn, tx, transform)
    settings = FitSettings(steps=steps, log_every=2, checkpoint_every=2, progress=False)
    with Checkpoints(folder, run="a") as checkpoints:
        state = fit(state, step, batch_at, settings, checkpoints=checkpoints, resume=True, placement=placement)
        spread = str(state.params["a"].sharding.spec)
        gathered = jax.jit(
            lambda params, masks: (params, masks),
            out_shardings=jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec()),
        )(state.params, state.tstate.masks)
        host = jax.device_get(gathered)
    multihost.barrier("the end", timeout=60)
    if multihost.is_first():
        masks = [np.asarray(leaf) for leaf in jax.tree.leaves(host[1])]
        digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(host))).hexdigest()
        zeros = [int((~mask).sum()) for mask in masks]
        sums = [float(np.abs(leaf).astype(np.float64).sum()) for leaf in jax.tree.leaves(host[0])]
        Path(folder).parent.joinpath("result.json").write_text(
            json.dumps({"digest": digest, "zeros": zeros, "sums": sums, "spec": spread, "step": int(state.step)})
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], *map(int, sys.argv[5:7]), *sys.argv[7:])
