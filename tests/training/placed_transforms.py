"""Train under every transform of the contract on one device and on four, in each placement; print what differs.

    python tests/training/placed_transforms.py [--steps 6] [--only PATTERN] [--out FILE.md]

Every row of `tests/contract_rows.py` (and some over scanned layers) takes steps of Adam on one device, then in data parallel,
FSDP and tensor parallel (2 x 2), from the same state on the same batches. Compared after the last step: masks and other
booleans and integers, bit by bit; the losses of all steps, whose largest difference is told. FILE is written after every row,
and rows that it has already are not run again: each says of which revision it is.
"""

import argparse
import os
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract_rows import SINGLES, TRIPLES, loss, weights

from lepton_jax import Transform, chain, fake_quant, graph, low_rank, prune
from lepton_jax.core import paths, schedules
from lepton_jax.quantization import Codebook, lsq
from lepton_jax.training import Placement, create, data_mesh, fsdp, make_train_step, replicated, shard_step, tensor_parallel

EXACT = 2e-6
"""How far the losses of an exact transform may be apart: gradients are summed in another order."""


def scanned(params: Any, x: jax.Array) -> jax.Array:
    """Layers that are stacked."""
    return jax.lax.scan(lambda h, kernel: (jnp.tanh(h @ kernel), None), x, params["layers"]["kernel"])[0]


def two_layers(params: Any, x: jax.Array) -> jax.Array:
    """The network of the contract's loss."""
    return jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]


class Net(NamedTuple):
    """What is trained."""

    params: Any
    apply: Any
    loss: Any
    inputs: int


def nets() -> dict[str, Net]:
    """The contract's network, and one of scanned layers."""
    stack = {"layers": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8)) / 2, jnp.float32)}}
    return {
        "contract": Net(weights(), two_layers, loss, 6),
        "scanned": Net(stack, scanned, lambda p, x: jnp.mean(scanned(p, x).astype(jnp.float32) ** 2), 8),
    }


def rows() -> dict[str, tuple[str, Transform]]:
    """By name, which net and which transform."""
    net = nets()["scanned"]
    roles = graph.weights(scanned, net.params, jnp.ones((8, 8)))
    late = schedules.polynomial(0.7, begin=1, end=4)
    over_scan = {
        "prune": prune(late, select=roles),
        "fake_quant": fake_quant(4, select=roles),
        "codebook": fake_quant(Codebook(bits=2), select=roles),
        "low_rank": low_rank(2, select=roles),
        "lsq": lsq(4, select=roles),
        "prune>int4": chain(prune(late, scope="global", select=roles), fake_quant(4, select=roles)),
    }
    return {name: ("contract", t) for name, t in (SINGLES | TRIPLES).items()} | {
        f"scanned: {name}": ("scanned", t) for name, t in over_scan.items()
    }


def placements(net: Net) -> dict[str, Placement]:
    """The three usual ones, over four devices."""
    square = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jnp.ones((8, net.inputs))
    return {
        "DP": replicated(data_mesh()),
        "FSDP": fsdp(data_mesh()),
        "TP": tensor_parallel(square, net.apply, net.params, x),
    }


def train(net: Net, transform: Transform, placement: Placement | None, steps: int) -> tuple[Any, np.ndarray]:
    """Return the state and the losses."""

    def loss_fn(params: Any, model_state: Any, batch: jax.Array, key: jax.Array) -> Any:
        return net.loss(params, batch), (model_state, {})

    tx = optax.adam(0.02)
    state = create(net.params, {}, tx, transform, jax.random.key(0), placement=placement)
    step = make_train_step(loss_fn, tx, transform, lowering=False)
    if placement is not None:
        step = shard_step(step, placement.mesh, axis=placement.batch_axis)
    losses = []
    for number in range(steps):
        batch = np.random.default_rng([7, number]).normal(size=(8, net.inputs)).astype(np.float32)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, np.array(losses)


class Difference(NamedTuple):
    """Between a run on one device and one on four."""

    masks: int
    of: int
    integers: list[str]
    loss: float
    moved: list[str]


def differences(net: Net, transform: Transform, steps: int = 6, only: str = "*") -> dict[str, Difference]:
    """Return them by placement."""
    one, losses = train(net, transform, None, steps)
    mine, found = _host(one), {}
    for name, placement in placements(net).items():
        if not fnmatch(name, only):
            continue
        four, others = train(net, transform, placement, steps)
        assert jax.tree.structure(one) == jax.tree.structure(four)
        theirs = _host(four)
        bools = [path for path, leaf in mine.items() if leaf.dtype == bool]
        wholes = [path for path, leaf in mine.items() if leaf.dtype.kind in "iu" and "thresholds" not in path]
        wanted = paths.flatten(placement.shardings(four, net.params))
        lies = paths.flatten(four)
        found[name] = Difference(
            sum(int((mine[path] != theirs[path]).sum()) for path in bools),
            sum(mine[path].size for path in bools),
            [path for path in wholes if not np.array_equal(mine[path], theirs[path])],
            float(np.abs(losses - others).max()),
            [path for path, leaf in lies.items() if not leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim)],
        )
    return found


def _host(state: Any) -> dict[str, np.ndarray]:
    leaves = paths.flatten(state)
    keys = {p: jax.random.key_data(x) for p, x in leaves.items() if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)}
    return {path: np.asarray(leaf) for path, leaf in (leaves | keys).items()}


def kept_rows(file: Path) -> dict[str, tuple[str, ...]]:
    """Return the rows that a table has already, by transform."""
    lines = file.read_text().splitlines() if file.exists() else []
    cells = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row for row in cells}


def main() -> None:
    """Print a line for each row as it comes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", default="*", help="which rows: a pattern over their names")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is all the time there is
    from experiments.common.tables import markdown_table, revision
    from lepton_jax.core.files import write_text

    heads = ("transform", "mask bits", "differ", "integers differ", "loss differs, DP", "FSDP", "TP", "revision")
    found, every, at = nets(), rows(), revision()
    had = kept_rows(options.out) if options.out else {}
    lines: list[str] = []
    for name, (kind, transform) in every.items():
        if name not in had and fnmatch(name, options.only):
            by = differences(found[kind], transform, options.steps)
            masks, integers = sum(one.masks for one in by.values()), sorted({p for one in by.values() for p in one.integers})
            losses = [f"{one.loss:.1e}" for one in by.values()]
            had[name] = (f"`{name}`", str(by["DP"].of), str(masks), ", ".join(integers) or "none", *losses, at)
            print(*had[name], [path for one in by.values() for path in one.moved] or "", sep="  ", flush=True)
        table = [had[one] for one in every if one in had]
        sound = sum(row[2] == "0" and row[3] == "none" for row in table)
        apart = [row[0] for row in table if max(map(float, row[4:7])) > EXACT]
        lines = [
            "# Transforms of the contract on one device and on four",
            "",
            f"`python tests/training/placed_transforms.py --steps {options.steps}`, jax {jax.__version__}.",
            "",
            f"{len(table)} of {len(every)} rows in data parallel, FSDP and tensor parallel (2 x 2) of the host: {sound} with",
            "every mask and integer the same bits as on one device; the losses of these "
            f"{len(apart)} are further apart than {EXACT:.0e}:",
            ", ".join(apart) + ".",
            "",
            *markdown_table([heads, *table]),
        ]
        if options.out:
            write_text(options.out, "\n".join(lines) + "\n")
    print(*lines[4:7])


if __name__ == "__main__":
    main()
