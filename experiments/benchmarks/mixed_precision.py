"""Measure what mixed precision saves, and what it costs, on ResNet-20 and on a character transformer.

    python -m experiments.benchmarks.mixed_precision [--repeats 5] [--batch-size 128] [--out FILE.md]

Printed for float32, `autocast` in bfloat16 with and without recomputation, Flax's own bfloat16 and, if it is installed, jmp:
the bytes that the traced step saves between its forward and its backward pass (from shapes; nothing is run), the temporary
memory of the compiled step by XLA's `memory_analysis()`, and the time of a step with its ratio to float32, measured in turns.
The saved bytes must fall by 40 % under autocast. No speed is promised: on CPU bfloat16 is mostly slower.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks.harness import Run, arguments, installed, origin, publish, yes
from experiments.common.tables import Lines, markdown_table
from lepton_jax import identity
from lepton_jax.core.timing import against
from lepton_jax.data import Batch
from lepton_jax.models import ResNetCifar, Transformer
from lepton_jax.precision import Policy, autocast
from lepton_jax.training import LossFn, TrainState, classification_loss, create, linen_apply, make_train_step

LIMIT = 0.6
BF16 = Policy(compute_dtype="bfloat16")


def saved_bytes(loss_fn: LossFn, state: TrainState, batch: Batch) -> int:
    """Bytes that the backward pass of the loss gets from its forward pass, parameters included."""

    def saved(params: Any, model_state: Any, batch: Batch) -> list[Any]:
        def loss(params: Any) -> Any:
            return loss_fn(params, model_state, batch, jax.random.key(0))[0]

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    leaves = jax.eval_shape(saved, state.params, state.model_state, batch)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def jmp_apply(module: nn.Module) -> Callable[..., Any]:
    """The peer: jmp's policy around the apply of a module that computes in its own dtype, as jmp's documentation shows."""
    import jmp

    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
    inner = linen_apply(module)

    def apply(params: Any, model_state: Any, inputs: Any, *, train: bool, key: Any) -> Any:
        params, inputs = policy.cast_to_compute((params, inputs))
        outputs, model_state = inner(params, model_state, inputs, train=train, key=key)
        return policy.cast_to_output(outputs), model_state

    return apply


def variants(module: nn.Module, narrow: nn.Module) -> dict[str, LossFn]:
    """The loss under each way of computing."""
    plain = linen_apply(module)
    found = {
        "float32": classification_loss(plain),
        "autocast bfloat16": classification_loss(autocast(plain, BF16)),
        "autocast, nothing recomputed": classification_loss(autocast(plain, BF16, recompute=False)),
        "Flax dtype=bfloat16": classification_loss(linen_apply(narrow)),
    }
    if installed("jmp"):
        found["jmp and Flax dtype=bfloat16"] = classification_loss(jmp_apply(narrow))
    return found


def measure(losses: dict[str, LossFn], variables: Any, batch: Batch, repeats: int) -> list[tuple[str, int, int, float, float]]:
    """Rows of (name, saved bytes, temporary bytes of the compiled step, seconds a step, median ratio to float32)."""
    tx = optax.sgd(0.1, momentum=0.9)
    model_state = {name: value for name, value in variables.items() if name != "params"}
    states: dict[str, Any] = {}
    steps, saved, temporary = {}, {}, {}
    for name, loss_fn in losses.items():
        states[name] = create(variables["params"], model_state, tx, identity(), jax.random.key(1))
        saved[name] = saved_bytes(loss_fn, states[name], batch)
        steps[name] = make_train_step(loss_fn, tx, identity()).lower(states[name], batch).compile()  # type: ignore[attr-defined]
        analysis = steps[name].memory_analysis()
        temporary[name] = 0 if analysis is None else analysis.temp_size_in_bytes
    runs = {name: Run(step, states[name], [batch]) for name, step in steps.items()}
    taken = against(runs, "float32", rounds=repeats)
    return [(name, saved[name], temporary[name], *taken[name]) for name in losses]


def cases(batch_size: int) -> dict[str, tuple[nn.Module, nn.Module, Batch]]:
    """Name -> (module, the same in bfloat16, a batch)."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(0, 65, (8, 129)).astype(np.int32)
    sizes: dict[str, Any] = {"vocabulary": 65, "depth": 4, "width": 128, "heads": 4, "mlp": 512, "max_length": 128}
    labels = rng.integers(0, 10, batch_size).astype(np.int32)
    return {
        f"ResNet-20, batch {batch_size}": (
            ResNetCifar(),
            ResNetCifar(dtype=jnp.bfloat16),
            Batch(images, labels, np.ones(batch_size, bool)),
        ),
        "Transformer, 8 x 128 characters": (
            Transformer(**sizes),
            Transformer(**sizes, dtype=jnp.bfloat16),
            Batch(tokens[:, :-1], tokens[:, 1:], np.ones(8, bool)),
        ),
    }


def main() -> None:
    """Print one table a model, and write them if asked."""
    options = arguments(__doc__, out=True, repeats=(5, "turns; medians are over these"), batch_size=(128, "of ResNet-20"))
    said = f"mixed_precision --repeats {options.repeats} --batch-size {options.batch_size}"
    lines = ["# Mixed precision: what is saved, and what it costs", "", origin(said, code=False)]
    for title, (module, narrow, batch) in cases(options.batch_size).items():
        variables = jax.jit(module.init)(jax.random.key(0), batch.images)
        rows = measure(variants(module, narrow), variables, batch, options.repeats)
        whole = rows[0][1]
        cells: Lines = [("", "saved MB", "of float32", "XLA temporaries MB", "step ms", "time of float32")]
        for name, saved, temporary, seconds, ratio in rows:
            sizes = (f"{saved / 1e6:.1f}", f"{saved / whole:.2f}", f"{temporary / 1e6:.1f}")
            cells.append((name, *sizes, f"{seconds * 1e3:.1f}", f"{ratio:.2f}"))
        lines += ["", f"## {title}", "", *markdown_table(cells), ""]
        part = rows[1][1] / whole
        lines.append(f"autocast saves {1 - part:.0%} less; at least {1 - LIMIT:.0%} is required: {yes(part <= LIMIT)}.")
    publish(lines, options.out)


if __name__ == "__main__":
    main()
