"""Removing 30 % of the MACs of a ResNet-20 that others trained on CIFAR-10, by four criteria, then fine-tuning.

    python -m experiments.channel_pruning_resnet20 --data FOLDER --epochs 2

`--data` holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`, 4,000 training and 1,000 test images: one test image is 0.1
points, the standard error of an accuracy about 1 point. Prints and writes one table: accuracy before the cut, after it, and
after tuning, for every criterion and seed. Tuning: SGD with momentum, half a cosine, flips and shifts by up to 4 pixels.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.data import load_cifar10_subset, standardize
from lepton_jax.data.dataset import Split
from lepton_jax.models import ResNetCifar, load_resnet20
from lepton_jax.pruning.channels import GeometricMedian, Importance, Norm, Plan, Random, Taylor, plan, verify
from lepton_jax.typing import PyTree

Apply = Callable[..., Any]
MODEL = ResNetCifar(depth=20, shortcut="pad")


def train_mode(variables: PyTree, x: jax.Array) -> Any:
    """Logits and updated batch statistics."""
    return MODEL.apply(variables, x, train=True, mutable=["batch_stats"])


def accuracy(apply: Apply, variables: PyTree, split: Split, batch: int = 250) -> float:
    """Percent of images classified rightly."""
    run = jax.jit(lambda v, x: apply(v, x).argmax(-1))
    guesses = [np.asarray(run(variables, split.images[i : i + batch])) for i in range(0, len(split), batch)]
    return 100.0 * float(np.mean(np.concatenate(guesses) == split.labels))


def gradients(variables: PyTree, split: Split, batch: int = 250) -> PyTree:
    """The gradient of the mean cross-entropy over a split, in eval mode."""

    def loss(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = MODEL.apply({**variables, "params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = jax.jit(jax.grad(loss))
    parts = [
        step(variables["params"], split.images[i : i + batch], split.labels[i : i + batch]) for i in range(0, len(split), batch)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip half of the images and shift each by up to 4 pixels."""
    images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images, images[:, :, ::-1])
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    starts = rng.integers(0, 9, (len(images), 2))
    return np.stack([image[r : r + 32, c : c + 32] for image, (r, c) in zip(padded, starts)])


def tune(apply: Apply, variables: PyTree, split: Split, *, epochs: int, rate: float, seed: int, batch: int = 100) -> PyTree:
    """Fine-tune the (shrunk) variables by a train-mode function."""
    steps = epochs * (len(split) // batch)
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9, nesterov=True)
    )

    @jax.jit
    def step(variables: PyTree, state: PyTree, x: jax.Array, labels: jax.Array) -> tuple[PyTree, PyTree]:
        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            logits, updated = apply({**variables, "params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(grads, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, state

    rng = np.random.default_rng(seed)
    state = optimizer.init(variables["params"])
    for _ in range(epochs):
        order = rng.permutation(len(split))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            variables, state = step(variables, state, augmented(split.images[chosen], rng), split.labels[chosen])
    return variables


def row(name: str, made: Plan, variables: PyTree, train: Split, test: Split, options: argparse.Namespace, seed: int) -> str:
    """Cut, tune, measure: one line of the table."""
    start = time.perf_counter()
    worst = verify(made, MODEL.apply, variables, test.images[:4], rtol=1e-4, gradients=False).worst
    small = made.shrink(variables)
    cut = accuracy(made.rewrite(MODEL.apply), small, test)
    tuned = tune(made.rewrite(train_mode), small, train, epochs=options.epochs, rate=options.rate, seed=seed)
    end = accuracy(made.rewrite(MODEL.apply), tuned, test)
    kept = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(small["params"]))
    line = f"| {name} | {seed} | {kept:,} | {cut:.1f} | {end:.1f} | {worst:.0e} |"
    print(f"{line}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return line


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.3, help="of the MACs that are removed")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("experiments/results/channel_pruning_resnet20.md"))
    options = parser.parse_args()
    data = load_cifar10_subset(options.data / "cifar10_subset")
    train = Split(images=standardize(data.train.images), labels=data.train.labels)
    test = Split(images=standardize(data.test.images), labels=data.test.labels)
    variables = jax.tree.map(jnp.asarray, load_resnet20(options.data / "weights" / "resnet20_cifar10.npz"))
    before = accuracy(MODEL.apply, variables, test)
    print(f"before: {before:.1f} %", flush=True)
    taylor = gradients(variables, train.take(np.arange(1000)))
    head = (
        f"# ResNet-20 with {options.fraction:.0%} of its MACs removed\n\n"
        f"The published weights give {before:.1f} % on the 1,000 test images before the cut. Every group of channels loses the "
        f"same fraction; {options.epochs} epoch(s) of {len(train):,} images at rate {options.rate} follow. An accuracy has a "
        "standard error of about 1 point. `difference` is the largest relative one of masked and shrunk logits.\n\n"
        f"Command: `python -m experiments.channel_pruning_resnet20 --data FOLDER --epochs {options.epochs} --seeds "
        f"{' '.join(map(str, options.seeds))}`\n\n"
        "| criterion | seed | parameters left | after the cut, % | after tuning, % | difference |\n|---|---|---|---|---|---|\n"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(head)
    for seed in options.seeds:
        criteria: dict[str, Importance] = {
            "L1": Norm(order=1),
            "Taylor": Taylor(gradients=taylor),
            "FPGM": GeometricMedian(),
            "random": Random(key=jax.random.key(seed)),
        }
        for name, criterion in criteria.items():
            made = plan(MODEL.apply, variables, test.images[:1], fraction=options.fraction, of="macs", criterion=criterion)
            line = row(name, made, variables, train, test, options, seed)
            with options.output.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
