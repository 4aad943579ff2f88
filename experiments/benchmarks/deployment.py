"""What deployment gains: networks in ONNX Runtime, float against int8, fewer channels, low rank and int4; and XLA beside them.

    TFDS_DATA_DIR=/path/to/tfds python -m experiments.benchmarks.deployment --out experiments/results/deployment.md

One core, one thread, processor time, by `deploy.gate`. Networks without published weights have random ones: their rows are of
speed and size alone.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks.harness import arguments, installed, origin, publish
from experiments.common import resnet20
from lepton_jax import Model, deploy
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import load_fashion_mnist
from lepton_jax.deploy.engine import runner
from lepton_jax.formats import Uniform
from lepton_jax.models import CNN, ResNet, Transformer
from lepton_jax.pruning import channels
from lepton_jax.quantization import quantize


class ViT(nn.Module):
    """A small vision transformer of 6 blocks, for images of 32 x 32 in patches of 4 x 4."""

    width: int = 192
    depth: int = 6
    heads: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits ``[B, 10]``."""
        x = nn.Conv(self.width, (4, 4), strides=4, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("place", nn.initializers.normal(0.02), (1, 64, self.width))
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class Net(NamedTuple):
    """A network to deploy: inputs to calibrate on, inputs to test on, and their labels, if there are any."""

    model: Model
    batches: list[Any]
    test: np.ndarray
    labels: np.ndarray | None = None


def fashion(epochs: int) -> Net:
    """Three convolutions, trained on Fashion-MNIST."""
    data, net = load_fashion_mnist(progress=False), CNN()
    variables = net.init(jax.random.key(0), data.train.images[:1])
    steps = epochs * (len(data.train) // 128)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(params: PyTree, stats: PyTree, state: Any, x: Array, y: Array) -> Any:
        def loss(params: PyTree) -> Any:
            logits, new = net.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), stats, state

    params, stats = variables["params"], variables["batch_stats"]
    state, random = tx.init(params), np.random.default_rng(0)
    for chosen in (random.permutation(len(data.train))[: 128 * (len(data.train) // 128)] for _ in range(epochs)):
        for some in chosen.reshape(-1, 128):
            params, stats, state = step(params, stats, state, data.train.images[some], data.train.labels[some])
    model = Model(net.apply, {"params": params, "batch_stats": stats}, (data.train.images[:1],))
    return Net(model, [data.train.images[i : i + 64] for i in range(0, 512, 64)], data.test.images, data.test.labels)


def published() -> Net:
    """ResNet-20 of others, on a thousand images of CIFAR-10."""
    train, test = resnet20.lossless_splits(resnet20.FOLDER)
    model = Model(resnet20.MODEL.apply, resnet20.load_variables(resnet20.FOLDER), (train.images[:1],))
    return Net(model, [train.images[i : i + 50] for i in range(0, 500, 50)], test.images, test.labels)


def untrained(net: Any, make: Callable[[int], np.ndarray]) -> Net:
    """A network of random weights."""
    return Net(Model(net.apply, net.init(jax.random.key(0), make(1)), (make(1),)), [make(8), make(8)], make(64))


def images(count: int) -> np.ndarray:
    """Noise of 32 x 32 pixels."""
    return np.random.default_rng(count).normal(size=(count, 32, 32, 3)).astype(np.float32)


def tokens(count: int) -> np.ndarray:
    """Noise of 64 characters."""
    return np.random.default_rng(count).integers(0, 64, (count, 64)).astype(np.int32)


def half(model: Model) -> Model:
    """The same with half of its channels."""
    made = channels.plan(model.apply, model.variables, *model.example, fraction=0.5)
    return Model(made.rewrite(model.apply), made.shrink(model.variables), model.example)


def in_groups(model: Model) -> Model:
    """The same with kernels in four bits, in groups of 32."""

    def change(path: Any, leaf: Any) -> Any:
        kernel = leaf.ndim == 2 and "kernel" in jax.tree_util.keystr(path)
        return quantize(leaf, Uniform(4, group_size=32, group_axis=0)) if kernel else leaf

    return Model(model.apply, jax.tree_util.tree_map_with_path(change, model.variables), model.example)


def engines_own(net: Net, source: Path, target: Path) -> None:
    """ONNX Runtime's own quantization of the float file, as its documentation has it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(net.batches)

        def get_next(self) -> Any:
            batch = next(self.left, None)
            return None if batch is None else {"input_0": np.asarray(batch)}

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)


def files_of(name: str, net: Net, folder: Path) -> dict[str, tuple[Path, Any]]:
    """The files to compare, the float one first; with what says their numbers, if something does."""
    made: dict[str, tuple[Path, Any]] = {}

    def put(label: str, write: Callable[[Path], Any]) -> None:
        path = folder / f"{len(made)}.onnx"
        made[label] = (path, write(path))

    def placed(model: Model, path: Path) -> Any:
        found = deploy.place(model, net.batches)
        found.save(path)
        return found

    put("float", partial(deploy.save, net.model))
    put("int8", partial(placed, net.model))
    if name.startswith("ResNet"):
        put("int8 by quantize_static", partial(engines_own, net, made["float"][0]))
    if name in ("ResNet-18", "three convolutions"):
        put("half the channels", partial(deploy.save, half(net.model)))
        put("half the channels, int8", partial(placed, half(net.model)))
    if name.startswith("transformer"):
        put("int4 in groups", partial(deploy.save, in_groups(net.model)))
        put("int4 in groups, activations int8", partial(deploy.save, in_groups(net.model), activations="int8"))
    return made


def rows_of(name: str, net: Net, batch: int, rounds: int, folder: Path) -> list[str]:
    """A row for each way."""
    files = files_of(name, net, folder)
    runs = {label: runner(path) for label, (path, _) in files.items()}
    x = net.test[:batch]
    x = x[:, :1] if name == "transformer, one token" else x
    calls: dict[str, Callable[[], Any]] = {label: partial(run, x) for label, run in runs.items()}
    xla, given = jax.jit(net.model.apply), jnp.asarray(x)
    calls["float in XLA"] = lambda: xla(net.model.variables, given)
    measured = deploy.gate(calls, rounds)
    exact = runs["float"](net.test[:64])[0]
    lines = []
    for label, (ratio, low, high) in measured.ratios.items():
        size = right = far = bits = ""
        if label in files:
            path, placed = files[label]
            size = f"{path.stat().st_size / 1e3:,.0f} kB"
            got = runs[label](net.test[:64])[0]
            if got.shape == exact.shape:
                far = f"{np.sqrt(np.mean((got - exact) ** 2)) / np.sqrt(np.mean(exact**2)):.4f}"
            if isinstance(placed, deploy.Placed):
                simulated = np.asarray(placed.simulate(net.test[:64]))
                bits = (
                    "equal" if np.array_equal(simulated, got) else f"{np.abs(simulated - got).max() / np.abs(exact).max():.4f}"
                )
            if net.labels is not None:
                right = f"{100 * accuracy(runs[label], net):.2f} %"
        trust = "" if measured.is_trusted else " (A/A off)"
        cells = (
            name,
            batch,
            label,
            size,
            f"{1e3 * measured.seconds[label]:.3f}",
            f"{ratio:.2f}{trust}",
            f"{low:.2f}-{high:.2f}",
        )
        lines.append("| " + " | ".join(map(str, (*cells, right, far, bits))) + " |")
        print(lines[-1], flush=True)
    return lines


def accuracy(run: Callable[..., Any], net: Net) -> float:
    """The part of the test inputs that are classified rightly."""
    assert net.labels is not None
    parts = range(0, len(net.test), 250)
    right = sum(int((run(net.test[i : i + 250])[0].argmax(-1) == net.labels[i : i + 250]).sum()) for i in parts)
    return right / len(net.labels)


NETS: dict[str, Callable[[int], Net]] = {
    "three convolutions": fashion,
    "ResNet-20": lambda epochs: published(),
    "ResNet-18": lambda epochs: untrained(ResNet(classes=10, stem="small"), images),
    "ViT": lambda epochs: untrained(ViT(), images),
    "transformer": lambda epochs: untrained(
        Transformer(vocabulary=64, depth=4, width=256, heads=4, mlp=1024, max_length=64), tokens
    ),
    "transformer, one token": lambda epochs: untrained(
        Transformer(vocabulary=64, depth=4, width=512, heads=8, mlp=2048, max_length=64), lambda count: tokens(count)[:, :1]
    ),
}


def main() -> None:
    """Measure all networks, and write a table."""
    options: dict[str, tuple[Any, str]] = {
        "nets": (list(NETS), "which"),
        "batches": ([1], "examples in a call"),
        "rounds": (15, "rounds of the gate"),
        "epochs": (3, "of training on Fashion-MNIST"),
    }
    args = arguments(__doc__, out=True, **options)
    lines = [
        "Networks in ONNX Runtime on the CPU: times as fast as their float files, on one core, by processor time, with 95 %",
        "intervals. `error` is the root mean square of what differs from the float file's outputs, over theirs; `simulated`",
        "says whether `Placed.simulate` gives the file's numbers bit for bit, and else the largest difference over the largest",
        "output. Only the first two networks are trained; of the others speed, size and differences count.",
        "",
        origin("deployment"),
        "",
        "| network | batch | way | file | ms | ratio | interval | accuracy | error | simulated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    if not installed("onnxruntime"):
        raise SystemExit("needs onnxruntime: pip install 'lepton-jax[deploy]'")
    for name, batch in itertools.product(args.nets, args.batches):
        with tempfile.TemporaryDirectory() as folder:
            lines += rows_of(name, NETS[name](args.epochs), batch, args.rounds, Path(folder))
    publish(lines, args.out)


if __name__ == "__main__":
    main()
