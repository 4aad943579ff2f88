"""One process of a row of the scaling study: ``python -m experiments.studies.scaling_worker SETTINGS OUT``.

SETTINGS is JSON; what process 0 saw of every seed's training is written to OUT as JSON, and each process' seconds beside.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.common.config import Digits
from experiments.common.processes import home
from lepton_jax import prune
from lepton_jax.core import schedules
from lepton_jax.data import batches
from lepton_jax.models import LeNet300
from lepton_jax.training import (
    FitSettings,
    Placement,
    TrainState,
    batch_source,
    classification_loss,
    collectives,
    create,
    data_mesh,
    fit,
    fsdp,
    linen_apply,
    multihost,
    replicated,
    step_function,
)


class Losses:
    """Keeps what is logged, in memory."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    def write(self, step: int, values: Any) -> None:
        """Keep the loss."""
        self.rows.append(float(values["loss"]))

    def rewind(self, step: int) -> None:
        """Begin there."""

    def close(self) -> None:
        """Do nothing."""


def main(words: str, out: str) -> None:
    """Train all seeds, and write what was seen."""
    multihost.initialize()
    given = json.loads(words)
    mesh = data_mesh()
    placement = fsdp(mesh) if given["placement"] == "fsdp" else replicated(mesh)
    dataset = Digits().load()
    apply = linen_apply(LeNet300(hidden=tuple(given["hidden"])))
    steps, seen = given["steps"], []
    tx = optax.adam(given["rate"])
    transform = prune(schedules.polynomial(given["sparsity"], begin=steps // 6, end=3 * steps // 4), scope="global")
    step, rows = None, multihost.own_rows(given["batch"])
    for seed in given["seeds"]:
        params = LeNet300(hidden=tuple(given["hidden"])).init(jax.random.key(seed), dataset.train.images[:1])["params"]
        state = create(params, {}, tx, transform, jax.random.key(seed + 1), placement=placement)

        def stream(first: int, seed: int = seed) -> Any:
            for batch in batches(dataset.train, given["batch"], seed=seed, start_step=first):
                yield multihost.joined(jax.tree.map(lambda leaf: leaf[rows], batch), mesh)

        batch_at, losses = batch_source(stream), Losses()
        if step is None:
            made = step_function(classification_loss(apply), tx, transform)
            step, sent = compiled(made, state, batch_at(0), placement)
        wall, cpu = time.perf_counter(), time.process_time()
        settings = FitSettings(steps=steps, log_every=given["log_every"], progress=False)
        state = fit(state, step, batch_at, settings, metrics=losses)
        jax.block_until_ready(state)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        whole = whole_here(state, mesh)
        masks = [np.asarray(mask) for mask in jax.tree.leaves(whole.tstate.masks)]
        logits, _ = apply(transform.view(whole.params, whole.tstate), {}, dataset.test.images, train=False, key=None)
        seen.append(
            {
                "error": float(np.mean(np.argmax(logits, -1) != dataset.test.labels)),
                "losses": losses.rows,
                "masks": hashlib.sha256(b"".join(mask.tobytes() for mask in masks)).hexdigest(),
                "zeros": sum(int((~mask).sum()) for mask in masks),
                "wall": wall,
                "cpu": cpu,
            }
        )
    number = jax.process_index()
    Path(f"{out}.{number}").write_text(json.dumps({"seeds": seen, "sent": sent}))
    multihost.barrier("written", timeout=120)


def compiled(step: Any, state: TrainState, batch: Any, placement: Placement) -> tuple[Any, dict[str, float]]:
    """Return a compiled step, and the bytes that each device sends by kind of collective."""
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole, spread = (NamedSharding(placement.devices, PartitionSpec(*names)) for names in ((), (placement.batch_axis,)))
    jitted = jax.jit(step, in_shardings=(lies, spread), out_shardings=(lies, whole), donate_argnums=0)
    program = jitted.lower(state, batch).compile()
    sent: Counter[str] = Counter()
    for one in collectives(program):
        sent[one.kind] += one.sent  # type: ignore[assignment]
    return program, dict(sent)


def whole_here(state: TrainState, mesh: Any) -> TrainState:
    """Return a state whole in this process."""
    whole = NamedSharding(mesh, PartitionSpec())
    return home(jax.jit(lambda tree: tree, out_shardings=whole)(state))


if __name__ == "__main__":
    main(*sys.argv[1:3])
