"""Bytes, error, decoding speed and worth of compressed data sets.

    python -m experiments.benchmarks.compressed_data
    python -m experiments.benchmarks.compressed_data --cifar10 FOLDER      # with the CIFAR-10 sheets of a folder too
    python -m experiments.benchmarks.compressed_data --examples 1000 --epochs 1 --out /tmp/trial.md

Bytes are of the images alone. ``png``: the sum of one file an image, by Pillow with its best setting; ``zstd -19``, ``xz -9e``:
all pixels as one stream, which cannot be read by index. Speeds are images a second on one core: ``in order`` decodes the
blocks, ``at random`` takes 200 images one by one, each of which decodes its block unless it is the last one used.
"""

from __future__ import annotations

import argparse
import io
import lzma
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from PIL import Image

from experiments.common import members
from experiments.common.config import Adam, Tfds
from experiments.common.measuring import Measure
from experiments.common.tables import aligned, markdown_table, provenance, revision
from experiments.common.training_settings import Training
from lepton_jax import identity
from lepton_jax.core.files import write_text
from lepton_jax.data import Dataset, Split, load_cifar10_subset, load_digits, load_fashion_mnist, steps_per_epoch
from lepton_jax.data.compressed import Lossless, PatchPCA, open_dataset, write_dataset
from lepton_jax.models import LeNet300
from lepton_jax.training import classification_loss, create, linen_apply, make_train_step, stacked

ENERGIES = (0.8, 0.9, 0.97)
_RANDOM = 200
_SEEDS = 3
Lines = list[tuple[str, ...]]


def pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """Return images in [0, 1] as the integers they were."""
    return np.rint(images * levels).astype(np.uint8)


def png_bytes(images: np.ndarray) -> int:
    """Bytes of one PNG file an image."""
    total = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file, "PNG", optimize=True)
        total += file.tell()
    return total


def sets(examples: int, cifar10: Path | None) -> Iterator[tuple[str, np.ndarray, int]]:
    """Name, pixels and patch of every set."""
    yield "digits", pixels(load_digits(validation=0).train.images, 16), 4
    yield "Fashion-MNIST", pixels(load_fashion_mnist(validation=0).train.images[:examples], 255), 7
    if cifar10 is not None:
        yield "CIFAR-10", pixels(load_cifar10_subset(cifar10).train.images[:examples], 255), 8


def measured(name: str, images: np.ndarray, patch: int, folder: Path) -> Lines:
    """Rows of one set: each codec's bytes, error and speed, and the general compressors'."""
    raw, data = images.nbytes, images.tobytes()
    lines: Lines = []
    general = {
        "png": png_bytes(images),
        "zstd -19": len(zstandard.ZstdCompressor(19).compress(data)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    label = f"{name}, {len(images)}"
    for other, size in general.items():
        lines.append((label, other, f"{size:,}", f"{raw / size:.2f}x", "0", "-", "-", "-", "-"))
    codecs: dict[str, Lossless | PatchPCA] = {"lossless": Lossless(), "lossless, for speed": Lossless(favour="speed")}
    codecs |= {f"PCA, energy {energy:g}": PatchPCA(patch=patch, energy=energy) for energy in ENERGIES}
    for codec_name, codec in codecs.items():
        path = folder / "set.lepd"
        begun = time.perf_counter()
        write_dataset(path, {"image": images}, codec, progress=False)
        written = len(images) / (time.perf_counter() - begun)
        with open_dataset(path) as stored:
            report = stored.report(speed=True)
            places = np.random.default_rng(0).integers(0, len(images), _RANDOM).tolist()
            begun = time.perf_counter()
            for place in places:
                stored[place]
            random = _RANDOM / (time.perf_counter() - begun)
        entry = report.arrays[0]
        psnr = "-" if entry.mse == 0 else f"{entry.psnr:.1f}"
        speeds = (f"{written:,.0f}", f"{report.examples_per_second:,.0f}", f"{random:,.0f}")
        ratio = f"{raw / report.file_bytes:.2f}x"
        lines.append((label, codec_name, f"{report.file_bytes:,}", ratio, f"{entry.mse:.3g}", psnr, *speeds))
    return lines


def trained(examples: int, epochs: int, folder: Path) -> Lines:
    """Test errors of LeNet-300-100 trained from each container; the test images are the original ones."""
    source = load_fashion_mnist(validation=0)
    train, test = source.train.take(np.arange(examples)), source.test
    arrays = {"image": pixels(train.images, 255), "label": train.labels}
    empty = test.take(np.arange(0))
    config = Training(name="compressed_data", data=Tfds(name="fashion_mnist"), model=LeNet300(), epochs=epochs, batch_size=64)
    tx = Adam().build(epochs * steps_per_epoch(train, config.batch_size))
    step = make_train_step(classification_loss(linen_apply(config.model)), tx, identity())
    measure = Measure(linen_apply(config.model), Dataset(name="f", num_classes=10, train=train, validation=empty, test=test))
    seeds = range(_SEEDS)
    lines: Lines = []
    codecs: dict[str, Lossless | PatchPCA] = {"lossless": Lossless(favour="speed")}
    codecs |= {f"PCA, energy {energy:g}": PatchPCA(patch=7, energy=energy) for energy in (0.5, *ENERGIES)}
    for name, codec in codecs.items():
        write_dataset(folder / "train.lepd", arrays, codec, progress=False)
        with open_dataset(folder / "train.lepd") as stored:
            decoded, report = stored.arrays(progress=False), stored.report()
        split = Split(images=decoded["image"].astype(np.float32) / 255, labels=decoded["label"])
        dataset = Dataset(name="f", num_classes=10, train=split, validation=empty, test=test)
        state = members.start(config, dataset, lambda p, m, key: create(p, m, tx, identity(), key), seeds)
        state = members.train(config, split, step, state, seeds, epochs=epochs, name=name)
        errors = [100 * e for e in measure(identity(), [stacked.member(state, i) for i in range(_SEEDS)])["error"]]
        figures = (f"{report.file_bytes:,}", f"{report.ratio:.1f}x", f"{report.arrays[0].psnr:.1f}")
        lines.append((name, *figures, f"{statistics.mean(errors):.2f}", f"{statistics.stdev(errors):.2f}"))
    return lines


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, help="images of each set at most")
    parser.add_argument("--epochs", type=int, default=5, help="of training")
    parser.add_argument("--cifar10", type=Path, help="folder with the CIFAR-10 sheets")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/compressed_data.md"))
    options = parser.parse_args()
    head = ("set", "codec", "bytes", "ratio", "MSE", "PSNR dB", "written/s", "in order/s", "at random/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes: Lines = [head]
        for row in sets(options.examples, options.cifar10):
            sizes += measured(*row, folder)
            print("\n".join(aligned(sizes)), flush=True)
        errors: Lines = [("trained from", "file bytes", "ratio", "PSNR dB", "test error %", "deviation")]
        errors += trained(options.examples, options.epochs, folder)
        print("\n".join(aligned(errors)))
    tables = (
        ("Bytes, error and speed", " ".join((__doc__ or "").split("\n\n")[2].split()), sizes),
        (
            "What a model trained from it is worth",
            f"LeNet-300-100 on {options.examples} images of Fashion-MNIST, {options.epochs} epochs, {_SEEDS} seeds, last "
            "epoch; tested on the original images.",
            errors,
        ),
    )
    text = "\n\n".join("\n".join([f"## {heading}\n\n{about}\n", *markdown_table(lines)]) for heading, about, lines in tables)
    origin = provenance({revision()}, "benchmarks.compressed_data")
    write_text(options.out, f"# Compressed data sets\n\n{text}\n\n{origin}\n")


if __name__ == "__main__":
    main()
