"""The report of a post-training study of a classifier: tables of accuracies, choices and costs, and a figure."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.results import Result, deviation, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.ptq.study import FLOAT, PtqMethods

_COSTS = ("parameters", "bytes", "MACs", "time, 1", "time, 128")


def write(run_dir: Path, config: PtqMethods, results: Sequence[Result]) -> None:
    """Write `ptq_methods.md`, its figure and `summary.json`, and print the tables."""
    lines, seeds = table(config, results), sorted({result["seed"] for result in results})
    dense = {key: _shown(results, FLOAT, 32, key) for key in ("test", "test, activations", "held out")}
    right = statistics.mean(_values(results, FLOAT, 32, "test")) / 100
    images = config.test_images
    plot(run_dir / "ptq_methods.png", config, results)
    text = [
        f"# {config.name}: post-training quantization of {config.source.title}",
        f"Accuracy in percent on {images:,} {config.source.images}; float {dense['test']} %, with {config.activation_bits}-bit "
        f"activations alone {dense['test, activations']} %. One image is {100 / images:.2g} points, "
        f"the standard error of an accuracy about {100 * math.sqrt(right * (1 - right) / images):.1f}. Batch norms are folded; "
        "every layer's weights are quantized, the first's and the last's too, symmetric, with a scale for each output channel. "
        f"Activations: static, affine, one range a tensor, {config.percentile:g} % of the values covered. Nothing is trained "
        f"afterwards: {config.images:,} training images calibrate weights and activations, others for every seed "
        f"({', '.join(map(str, seeds))}).",
        "\n".join(markdown_table(lines)),
        "![accuracy against bits](ptq_methods.png)",
        f"Chosen on {config.held_out:,} other images that are not test images, on which the float network has "
        f"{dense['held out']} %:",
        "\n".join(markdown_table(choices(config, results))),
        "## Costs",
        "Of the first seed, with weights packed and float activations. Bytes are those of the file without its program, MACs "
        "multiply-accumulates an image; time is that of the packed network over the float one's, compiled by XLA, at 1 and 128 "
        "images: below 1 is faster.",
        "\n".join(markdown_table(costs(results))),
        provenance({result["revision"] for result in results}, "ptq_methods")
        + f" Quantizing took {sum(result['seconds'] for result in results) / 60:.1f} minutes.",
    ]
    save_report(run_dir / "ptq_methods.md", config.name, text, results)
    print("\n".join(aligned(lines)))
    print("\n".join(aligned(choices(config, results))))


def table(config: PtqMethods, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a row; two columns a number of bits; means and deviations over seeds."""
    heads = [part for bits in config.bits for part in (f"W{bits}", f"W{bits}A{config.activation_bits}")]
    lines: list[tuple[str, ...]] = [
        ("method", *heads, *(f"held out, W{bits}A{config.activation_bits}" for bits in config.bits))
    ]
    for name in dict.fromkeys(result["row"] for result in results if result["row"] != FLOAT):
        test = [_shown(results, name, bits, key) for bits in config.bits for key in ("test", "test, activations")]
        lines.append((name, *test, *(_shown(results, name, bits, "held out, activations") for bits in config.bits)))
    return lines


def choices(config: PtqMethods, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return, for every number of bits, what the row that is best on held-out images reaches on the test images."""
    lines: list[tuple[str, ...]] = [("weights", "aim %", "chosen on held-out images", "reached %", "")]
    for bits in config.bits:
        names = dict.fromkeys(result["row"] for result in results if result["bits"] == bits)
        if names:
            best = max(names, key=lambda name: statistics.mean(_values(results, name, bits, "held out, activations")))
            reached, aim = statistics.mean(_values(results, best, bits, "test, activations")), config.aims.get(bits)
            said = ("", "") if aim is None else (f"{aim:.1f}", "met" if reached >= aim else "missed")
            lines.append((f"W{bits}A{config.activation_bits}", said[0], best, f"{reached:.1f}", said[1]))
    return lines


def costs(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a row and bits, of the seed whose costs were taken."""
    measured = [result for result in results if "file_bytes" in result]
    heads: tuple[str, ...] = ("method", "bits", *_COSTS)
    return [
        heads,
        *((result["row"], str(result["bits"]), *shown({**result, "seeds": [result["seed"]]}, _COSTS)) for result in measured),
    ]


def _values(results: Sequence[Result], name: str, bits: int, key: str) -> list[float]:
    return [result[key] for result in results if (result["row"], result["bits"]) == (name, bits)]


def _shown(results: Sequence[Result], name: str, bits: int, key: str) -> str:
    return spread(_values(results, name, bits, key), 1)


def plot(path: Path, config: PtqMethods, results: Sequence[Result]) -> None:
    """Draw accuracy with quantized activations against the bits of the weights."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(dict.fromkeys(result["row"] for result in results if result["row"] != FLOAT)):
        places = [place + 0.03 * number for place in range(len(config.bits))]
        values = [_values(results, name, bits, "test, activations") for bits in config.bits[::-1]]
        look = {"marker": "os^vDPX*<>"[number % 10], "capsize": 2, "label": name}
        axis.errorbar(places, [statistics.mean(some) for some in values], [deviation(some) for some in values], **look)
    axis.axhline(statistics.mean(_values(results, FLOAT, 32, "test")), color="0.6", linewidth=1)
    axis.set_xticks(range(len(config.bits)), [f"W{bits}A{config.activation_bits}" for bits in config.bits[::-1]])
    axis.set(ylabel="test accuracy (%)")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
