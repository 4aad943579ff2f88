"""Compare compressed sums of gradients: bytes on the wire, counted in the compiled step, and what the net learns.

    python -m experiments.benchmarks.gradient_compression [--seeds 5] [--steps 600] [--devices 4] [--out FILE.md]

A perceptron 64-256-128-10 learns handwritten digits on several host devices, data parallel, batch 256, by Adam (rate 2e-3)
and by momentum (rate 0.1), both falling to zero by a half cosine: every sum of `lepton_jax.training.reduce` beside the plain
one, with the same seeds, batches and rates. Bytes are what each device sends in a step if the devices form a ring. Accuracy is
on the test split after the last step, mean and deviation over the seeds. To reach: PowerSGD at a twentieth of the bytes within
0.5 points of the plain sum.
"""

import functools
import os
from typing import Any

import numpy as np

from experiments.benchmarks.harness import arguments, origin, publish, yes
from experiments.common.tables import Lines, markdown_table

BATCH, SIZES = 256, [(64, 256), (256, 128), (128, 10)]
TARGET_BYTES, TARGET_POINTS = 20.0, 0.5


def net(seed: int) -> dict[str, dict[str, Any]]:
    """He's initial weights."""
    rng = np.random.default_rng(seed)
    layers = [
        {"kernel": (rng.normal(size=size) * np.sqrt(2 / size[0])).astype(np.float32), "bias": np.zeros(size[1], np.float32)}
        for size in SIZES
    ]
    return {f"l{place}": layer for place, layer in enumerate(layers)}


def apply(params: Any, x: Any) -> Any:
    """The logits."""
    import jax

    for place in range(len(SIZES)):
        layer = params[f"l{place}"]
        x = (jax.nn.relu(x) if place else x) @ layer["kernel"] + layer["bias"][None]
    return x


def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """Cross entropy."""
    import optax

    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean(), (model_state, {})


def optimisers(steps: int) -> dict[str, Any]:
    """Adam and momentum, their rates falling to zero."""
    import optax

    fall = functools.partial(optax.cosine_decay_schedule, decay_steps=steps)
    return {"Adam": optax.adam(fall(2e-3)), "momentum": optax.sgd(fall(0.1), momentum=0.9)}


def ways() -> dict[str, Any]:
    """The sums, the plain one first."""
    from lepton_jax.precision import AllReduce
    from lepton_jax.training import Int8Reduce, PowerSgd, TopK

    return {
        "float32": AllReduce(),
        "Int8Reduce()": Int8Reduce(),
        "PowerSgd(4)": PowerSgd(4),
        "PowerSgd(2)": PowerSgd(2),
        "PowerSgd(1)": PowerSgd(1),
        "TopK(0.01)": TopK(0.01),
    }


def bytes_sent(reduce: Any, mesh: Any) -> float:
    """Return what each device sends in a compiled step."""
    import jax
    import optax

    from lepton_jax import identity
    from lepton_jax.training import collectives, create, parallel_step, replicated

    tx = optax.sgd(0.1)
    state = create(net(0), {}, tx, identity(), jax.random.key(0), placement=replicated(mesh), reduce=reduce)
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = parallel_step(loss_fn, tx, identity(), mesh, reduce=reduce)
    batch = np.zeros((BATCH, SIZES[0][0]), np.float32), np.zeros(BATCH, np.int32)
    compiled = jax.jit(step, in_shardings=(lies, None), out_shardings=(lies, None)).lower(state, batch).compile()
    return sum(one.sent for one in collectives(compiled))


def accuracies(reduce: Any, tx: Any, devices: int, seeds: int, steps: int) -> list[float]:
    """Return the test accuracies, in percent; the devices are an axis of `jax.vmap`, which computes the same."""
    import jax

    from lepton_jax import identity
    from lepton_jax.data import load_digits
    from lepton_jax.training import create, step_function

    data = load_digits()
    x, y = jax.numpy.asarray(data.train.images.reshape(-1, 64)), jax.numpy.asarray(data.train.labels.astype(np.int32))
    step = jax.vmap(step_function(loss_fn, tx, identity(), reduce=reduce), axis_name="data")
    run = jax.jit(lambda state, rows: jax.lax.scan(lambda s, at: step(s, (x[at], y[at])), state, rows)[0])
    found = []
    for seed in range(seeds):
        state = create(net(seed), {}, tx, identity(), jax.random.key(seed))
        state = state._replace(reduction=reduce.init(state.params, 1))
        each = jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * devices), state)
        rows = np.random.default_rng(seed).integers(0, len(x), (steps, devices, BATCH // devices))
        params = jax.device_get(jax.tree.map(lambda leaf: leaf[0], run(each, rows).params))
        right = np.asarray(apply(params, data.test.images.reshape(-1, 64))).argmax(1) == data.test.labels
        found.append(100 * float(right.mean()))
    return found


def main() -> None:
    """Print the table, and write it if asked."""
    options = arguments(
        __doc__, out=True, seeds=(5, "runs of each"), steps=(600, "of each run"), devices=(4, "of the host, as a mesh")
    )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"
    import jax

    from lepton_jax.training import data_mesh

    mesh, sums = data_mesh(jax.devices()[: options.devices]), ways()
    said = f"gradient_compression --seeds {options.seeds} --steps {options.steps} --devices {options.devices}"
    lines = ["# Compressed sums of gradients: bytes and accuracy", "", origin(said), ""]
    met: list[str] = []
    for name, tx in optimisers(options.steps).items():
        cells: Lines = [(name, "bytes a step", "fewer", "test accuracy %", "points lost")]
        plain: tuple[float, list[float]] = (0.0, [])
        for way, reduce in sums.items():
            sent, right = bytes_sent(reduce, mesh), accuracies(reduce, tx, mesh.size, options.seeds, options.steps)
            plain = plain if plain[1] else (sent, right)
            lost, fewer = float(np.mean(plain[1]) - np.mean(right)), plain[0] / sent
            mean = f"{np.mean(right):.2f} ± {np.std(right, ddof=min(1, len(right) - 1)):.2f}"
            cells.append((way, f"{sent:,.0f}", f"{fewer:.1f}x", mean, f"{lost:+.2f}"))
            print(*cells[-1], sep="  ", flush=True)
            if way.startswith("PowerSgd") and fewer >= TARGET_BYTES:
                met.append(f"{name}, {way}: {yes(lost <= TARGET_POINTS)} ({fewer:.1f}x, {lost:+.2f}).")
        lines += [*markdown_table(cells), ""]
    lines += [f"{TARGET_BYTES:.0f}x fewer bytes within {TARGET_POINTS} points:", "", *(f"- {line}" for line in met)]
    publish(lines, options.out)


if __name__ == "__main__":
    main()
