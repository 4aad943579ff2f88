"""The report of the study of units: measured ratios beside the papers' claims, accuracy against bytes, latency against rate."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.common.columns import Column, accuracy, change, figure, mean, plain, reference, setting, tabulate
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing, accuracy_against, point_of
from experiments.common.results import Result, gain
from experiments.common.study import Parts

CLAIMS: Mapping[str, str] = {"convolution": "+50 %", "pool": "+30 %", "dense": "+40 %"}
"""The papers' gains in speed, by kind of layer."""
SAME, POINTS, ENTROPY, BELOW_RAW = 0.05, 0.5, 1.1, 15.0
"""How far A/A may be off; what the wire is to hold."""
BEST, PREDICTED = 1.05, 0.2
"""What a choice of the cut is to hold: of the best way; how far a prediction may be off."""


def parts(results: Sequence[Result]) -> Parts:
    """All parts that were measured."""
    by_part = {name: [one for one in results if one["settings"]["part"] == name] for name in TITLES}
    made: Parts = []
    for name, title in TITLES.items():
        if by_part[name]:
            made += [f"## {title}", *MADE[name](by_part[name])]
    return made


TITLES = {
    "layers": "Layers before and after their graphs are optimised",
    "units": "The net whole and in units (claimed: time -20 %, memory -30 %)",
    "branches": "Independent branches, and a pipeline, on two devices of this machine",
    "edge": "Accuracy against bytes between edge and cloud",
    "latency": "From the input to the answer",
}


def faster(title: str, name: str) -> Column:
    """A gain in percent, with its interval; empty where there is none."""

    def cell(result: Result) -> str:
        if f"{name}_ratio" not in result:
            return ""
        ratio, low, high = (statistics.mean(result[f"{name}_{end}"]) for end in ("ratio", "low", "high"))
        return f"{ratio - 1:+.0%} [{low - 1:+.0%}, {high - 1:+.0%}]"

    return plain(title, cell)


def trusted(result: Result) -> bool:
    """Whether the first against itself came out within 5 %, for every seed.

    Example:
      >>> trusted({"again": [1.01, 0.96]}), trusted({"again": [1.01, 0.9]})
      (True, False)
    """
    return all(abs(one - 1) <= SAME for one in result["again"])


AGAIN = plain("A/A", lambda r: f"{statistics.mean(r['again']):.3f}" + ("" if trusted(r) else " (off)"))


def _layers(results: Sequence[Result]) -> Parts:
    columns = (
        plain("layer", lambda r: r["row"]),
        setting("what", "what"),
        setting("engine", "engine"),
        figure("before, ms", "before_ms", 3),
        faster("halfway", "halfway"),
        faster("after", "after"),
        plain("claimed", lambda r: CLAIMS[r["row"].split()[0]]),
        AGAIN,
    )
    return [tabulate(results, columns), "\n".join(f"- {note}" for note in claims(results))]


def claims(results: Sequence[Result]) -> list[str]:
    """Say of each kind of layer, engine and pass whether the claim is reached, by the mean over layers and seeds.

    Example:
      >>> settings = {"engine": "XLA", "what": "forward"}
      >>> claims([{"row": "pool 1", "settings": settings, "after_ratio": [1.5, 1.3], "again": [1.0, 1.0]}])
      ['pool, forward, XLA: +40 % on average; claimed +30 %: reached.']
    """
    said = []
    kinds = dict.fromkeys((r["row"].split()[0], r["settings"]["what"], r["settings"]["engine"]) for r in results)
    for kind, what, engine in kinds:
        mine = [
            r for r in results if (r["row"].split()[0], r["settings"]["what"], r["settings"]["engine"]) == (kind, what, engine)
        ]
        reached = 100 * (statistics.mean(one for r in mine for one in r["after_ratio"]) - 1)
        word = "reached" if reached >= float(CLAIMS[kind].split()[0]) else "missed"
        off = sum(not trusted(r) for r in mine)
        doubt = f" (A/A off in {off} of {len(mine)} rows)" if off else ""
        said.append(f"{kind}, {what}, {engine}: {reached:+.0f} % on average; claimed {CLAIMS[kind]}: {word}{doubt}.")
    return said


def _percent(title: str, name: str) -> Column:
    """A share of the whole, as what is more or less."""
    return plain(title, lambda r: f"{statistics.mean(r[name]) - 1:+.0%}" if name in r else "")


def _units(results: Sequence[Result]) -> Parts:
    columns = [plain("net", lambda r: r["row"]), setting("engine", "engine")]
    for name in ("before", "halfway", "after"):
        columns += [figure(f"{name}, ms", f"{name}_ms", 3), _percent("against whole", f"{name}_time")]
        columns += [mean("program, bytes", f"{name}_bytes"), _percent("memory", f"{name}_memory")]
    kept = [column for column in columns if any(column.cell(one, None) for one in results)]
    return [tabulate(results, (*kept, AGAIN)), "All against the whole net before, on the same engine."]


def _branches(results: Sequence[Result]) -> Parts:
    columns = (
        plain("what", lambda r: r["row"]),
        figure("in one program, ms", "whole_ms"),
        figure("times as fast on two devices", "apart_ratio"),
        figure("A/A", "again"),
    )
    said = "A gain that is no farther from 1 than A/A is none."
    return [tabulate(results, columns), said]


def _edge(results: Sequence[Result]) -> Parts:
    columns = (
        setting("task", "task"),
        plain("cut", lambda r: r["row"]),
        plain("work at the edge", lambda r: f"{statistics.mean(r['share']):.0%}" if "share" in r else ""),
        plain("bits", lambda r: str(r["settings"]["bits"])),
        mean("raw bytes", "raw_bytes"),
        mean("bytes on the wire", "wire_bytes"),
        mean("alone", "alone_bytes"),
        plain("below raw", lambda r: f"{below_raw(r):.1f}x" if "wire_bytes" in r else ""),
        mean("of the entropy", "of_entropy", ".3f"),
        accuracy("accuracy"),
        change("change"),
        plain("holds", lambda r: _holds(r, reference(results, "float", "task")(r))),
    )
    shown = [one for one in results if "wire_bytes" in one]
    points = [
        point_of(one, "wire_bytes", series=one["row"], label=f"{one['settings']['bits']} bits", **_where(one)) for one in shown
    ]
    drawing = Drawing(
        file="edge.png",
        alternative="accuracy against bytes on the wire",
        draw=partial(accuracy_against, points=points, cost="bytes on the wire, an image"),
    )
    said = (
        f"It holds: at most {ENTROPY} of the entropy of the levels, {BELOW_RAW:.0f} times below the raw values or more, and "
        f"{POINTS} points lost at most. `alone` is one image by itself with its frame. An image is 784 bytes, or 3,072."
    )
    return [tabulate(results, columns, reference(results, "float", "task")), said, *([drawing] if points else [])]


def _where(result: Result) -> dict[str, str]:
    return {"task": result["settings"]["task"], "panel": result["settings"]["task"]}


def below_raw(result: Result) -> float:
    """How many times fewer bytes cross than the values take in float32.

    Example:
      >>> below_raw({"raw_bytes": [4096.0], "wire_bytes": [256.0]})
      16.0
    """
    return statistics.mean(result["raw_bytes"]) / statistics.mean(result["wire_bytes"])


def _holds(result: Result, other: Result | None) -> str:
    if other is None or other is result:
        return ""
    good = statistics.mean(result["of_entropy"]) <= ENTROPY and below_raw(result) >= BELOW_RAW
    return "yes" if good and gain(result, other) >= -POINTS else "no"


def _latency(results: Sequence[Result]) -> Parts:
    columns = (
        setting("task", "task"),
        plain("Mbit/s", lambda r: f"{r['settings']['mbit']:g}"),
        plain("what crosses", lambda r: r["row"]),
        figure("predicted, ms", "predicted_ms", 1),
        figure("measured, ms", "measured_ms", 1),
        figure("median, ms", "median_ms", 1),
        plain("off", lambda r: f"{statistics.mean(off(r)):+.0%}"),
        plain("chosen", lambda r: f"{sum(r['chosen']):.0f} of {len(r['chosen'])}" if any(r["chosen"]) else ""),
    )
    drawing = Drawing(
        file="latency.png", alternative="latency against the link's rate", draw=partial(_draw_latency, results=results)
    )
    said = (
        "Predictions are sums of least times, and measured is the least of the requests; other work makes their median longer."
    )
    return [tabulate(results, columns), said, "\n".join(f"- {note}" for note in latency_notes(results)), drawing]


def off(result: Result) -> list[float]:
    """How far predictions are off, as fractions of what is measured.

    Example:
      >>> off({"predicted_ms": [4.0], "measured_ms": [8.0]})
      [-0.5]
    """
    return [p / m - 1 for p, m in zip(result["predicted_ms"], result["measured_ms"], strict=True)]


def latency_notes(results: Sequence[Result]) -> Iterator[str]:
    """Say how often a prediction and a choice held.

    Example:
      >>> settings = {"task": "t", "mbit": 1.0}
      >>> one = {"row": "a", "settings": settings, "predicted_ms": [9.0], "measured_ms": [10.0], "chosen": [1.0]}
      >>> for note in latency_notes([one, {**one, "row": "b", "predicted_ms": [11.0], "measured_ms": [9.6], "chosen": [0.0]}]):
      ...     print(note)
      Predicted within 20 % of measured: 2 of 2 (met); largest 15 %.
      Chosen within 5 % of the fastest way that was measured: 1 of 1 (met); farthest 1.04 times it.
    """
    far = [abs(one) for result in results for one in off(result)]
    held = sum(one <= PREDICTED for one in far)
    word = "met" if held == len(far) else "missed"
    yield f"Predicted within 20 % of measured: {held} of {len(far)} ({word}); largest {100 * max(far):.0f} %."
    ratios = []
    for task, mbit in dict.fromkeys((r["settings"]["task"], r["settings"]["mbit"]) for r in results):
        mine = [r for r in results if (r["settings"]["task"], r["settings"]["mbit"]) == (task, mbit)]
        for seed in range(len(mine[0]["chosen"])):
            best = min(r["measured_ms"][seed] for r in mine)
            ratios += [r["measured_ms"][seed] / best for r in mine if r["chosen"][seed]]
    good = sum(one <= BEST for one in ratios)
    word = "met" if good == len(ratios) else "missed"
    yield (
        f"Chosen within 5 % of the fastest way that was measured: {good} of {len(ratios)} ({word}); "
        f"farthest {max(ratios):.2f} times it."
    )


def _draw_latency(path: Path, results: Sequence[Result]) -> None:
    panels = []
    for task in dict.fromkeys(r["settings"]["task"] for r in results):
        mine = [r for r in results if r["settings"]["task"] == task]
        curves = []
        for number, way in enumerate(dict.fromkeys(r["row"] for r in mine)):
            some = [r for r in mine if r["row"] == way]
            x, color = [r["settings"]["mbit"] for r in some], f"C{number}"
            points = {"linestyle": "none", "color": color, "marker": "o"}
            line = {"linestyle": "-", "color": color, "linewidth": 1}
            curves.append(Curve(label=way, x=x, y=[r["measured_ms"] for r in some], look=points))
            curves.append(Curve(label="_", x=x, y=[r["predicted_ms"] for r in some], look=line | {"marker": ""}))
        panels.append(Panel(curves=curves, title=f"{task}: measured (dots), predicted (lines)", x_scale="log", y_scale="log"))
    draw(path, panels, x="rate of the link, Mbit/s", y="from the input to the answer, ms", columns=2, size=(7, 4.4))


MADE = {"layers": _layers, "units": _units, "branches": _branches, "edge": _edge, "latency": _latency}
