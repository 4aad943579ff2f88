"""Accuracy against cost: points by series, the Pareto front drawn and named."""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from experiments.common.names import readable
from experiments.common.points import Point, pareto, point_of
from experiments.common.results import Result
from lepton_jax.core.files import write_atomic

MARKERS = "os^vDPX<>*h"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6914")
"""Told apart by all eyes: M. Okabe and K. Ito, Color Universal Design, 2008; brown stands for its yellow."""
matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLORS)
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90)
"""Errors in percent that may stand at the axis."""
_FEWEST = 0.01
"""An error of less is drawn as this, since the axis is logarithmic."""
_FRONT = "Pareto front"
_FEWEST_OF_A_FRONT = 3
"""Points; fewer are no front."""
_MOST = 8
"""Series; more are told apart by the names at their points."""
_DENSE = ("dense", "float32", "float")
"""Rows that others are compared with: drawn as a line."""
DPI = 120
_LEGEND_LINES, _LEGEND_WIDTH = 4.4, 0.075
"""Lines of the legend an inch, and the inches of a letter."""
_ROOM = 3.0
"""Pixels around a label that are no other's."""
_STEPS = 12 * 12
"""Places that are tried for a label."""
_DETOUR = 25.0
"""So many pixels farther may a label be to lie on one line less."""
_NEAR = 22.0
"""A label that is farther from its point, in pixels, gets a line to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a report."""

    file: str
    """In the run's folder."""
    alternative: str
    """What it shows, in words."""
    draw: Callable[[Path], None]
    """Writes the file."""


_FORMATS: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What a figure is written as, and what is left out of the file: the same figure gives the same bytes."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, for pages, and as SVG and PDF beside it, for papers; each is there whole or not at all."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "pdf.fonttype": 42}):
        for suffix, metadata in _FORMATS.items():
            out = io.BytesIO()
            figure.savefig(out, format=suffix[1:], dpi=DPI, metadata=metadata)
            write_atomic(path.with_suffix(suffix), out.getbuffer())


def look(number: int) -> dict[str, Any]:
    """Return the colour and the marker of a series; no two of the first 88 look alike.

    Example:
      >>> look(9)
      {'color': 'C9', 'marker': '*'}
    """
    return {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)]}


def accuracy_by_bytes(results: Sequence[Result], *, series: str = "{row}", panel: str = "") -> list[Drawing]:
    """Return the drawing of every row's accuracy against the bytes of its file; none where no row has a file.

    Args:
      results: of a study.
      series: what a point belongs to: a text in which the row and its settings stand in braces.
      panel: the setting of which every value has a panel, and a front, of its own.
    """

    def one(result: Result) -> Point:
        where = str(result["settings"][panel]) if panel else ""
        name = series.format(row=result["row"], **result["settings"])
        return point_of(result, "file_bytes", series=name, label=result["row"], task=where, panel=where)

    points = [one(result) for result in results if "file_bytes" in result]
    draw = partial(accuracy_against, points=points, cost="bytes of the file without its program")
    return [Drawing(file="accuracy.png", alternative="accuracy against bytes", draw=draw)] if points else []


def accuracy_against(path: Path, points: Sequence[Point], *, cost: str) -> None:
    """Draw accuracy, by the logarithm of the error, against the logarithm of a cost; bars are one standard deviation.

    Args:
      path: of the PNG; an SVG and a PDF stand beside it.
      points: at least one.
      cost: the name of the axis.
    """
    points = _in_words(points)
    series = list(dict.fromkeys(point.series for point in points))
    panels = _by(points, "panel")
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    width, height = (8, 6.2) if len(panels) == 1 else (6.5 * columns, 5.2 * lines)
    legend_columns = math.ceil(len(series) / (_LEGEND_LINES * height))
    width += legend_columns * (0.5 + _LEGEND_WIDTH * max(map(len, [*series, _FRONT])))
    # The labels are placed in pixels, so those of the file must be those that they are placed in.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (name, mine) in zip(axes, panels.items()):
        axis.set_title(name if len(panels) > 1 else "", fontsize=10)
        _draw(axis, mine, series)
    figure.supxlabel(f"{cost}, logarithmic", fontsize=10)
    figure.supylabel("test accuracy (%), by the logarithm of the error", fontsize=10)
    known = {name: handle for axis in axes[: len(panels)] for handle, name in zip(*axis.get_legend_handles_labels())}
    shown = [name for name in [*series, _FRONT] if name in known]
    figure.legend([known[n] for n in shown], shown, loc="outside right center", fontsize=8, ncols=legend_columns)
    canvas.draw()
    figure.set_layout_engine("none")  # labels are placed between what now lies fast
    for axis, mine in zip(axes, panels.values()):
        _name(axis, mine, canvas.get_renderer())
    save_figure(figure, path)


def _draw(axis: Any, points: Sequence[Point], series: Sequence[str]) -> None:
    """Draw one panel's points and their front; a series looks the same in all panels."""
    axis.set_xscale("log")
    for name in dict.fromkeys(point.series for point in points):
        number = series.index(name)
        mine = [point for point in points if point.series == name]
        bars = tuple(zip(*map(_bar, mine)))
        axis.errorbar(*_places(mine), bars, linestyle="none", markersize=6, capsize=2, linewidth=1, label=name, **look(number))
    for dense in [point for point in points if point.label in _DENSE]:
        axis.axhline(_height(dense.accuracy), color="0.4", linestyle=":", linewidth=1, zorder=0)
    for front in _fronts(points):
        axis.step(*_places(front), where="post", color="0.4", linestyle="--", linewidth=1, zorder=0, label=_FRONT)
    _scale(axis, points)
    axis.grid(color="0.92")


def _by(points: Sequence[Point], name: str) -> dict[str, list[Point]]:
    """Group points by one of their fields, in their order."""
    grouped: dict[str, list[Point]] = {}
    for point in points:
        grouped.setdefault(getattr(point, name), []).append(point)
    return grouped


def _fronts(points: Sequence[Point]) -> list[list[Point]]:
    """Return the fronts that are of three points or more, each of one task."""
    fronts = [pareto(mine) for mine in _by(points, "task").values()]
    return [front for front in fronts if len(front) >= _FEWEST_OF_A_FRONT]


def _in_words(points: Sequence[Point]) -> list[Point]:
    """Return the points with readable names; of too many series two are made, what is on a front and what is not."""
    named = [dataclasses.replace(point, series=readable(point.series), label=readable(point.label)) for point in points]
    if len({point.series for point in named}) <= _MOST:
        return named
    best = {id(point) for mine in _by(named, "task").values() for point in pareto(mine)}

    def series(point: Point) -> str:
        return point.label if point.label in _DENSE else "on the front" if id(point) in best else "not on it"

    return [dataclasses.replace(point, series=series(point)) for point in named]


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.cost for point in points], [_height(point.accuracy) for point in points]


def _height(accuracy: float) -> float:
    return max(100 - accuracy, _FEWEST)


def _ends(point: Point) -> tuple[float, float]:
    """Where the bar ends: at less error, at more."""
    error = _height(point.accuracy)
    return max(error - point.deviation, _FEWEST / 2), error + point.deviation


def _bar(point: Point) -> tuple[float, float]:
    """How far the bar goes to less error, and to more."""
    error, (less, more) = _height(point.accuracy), _ends(point)
    return error - less, more - error


def _scale(axis: Any, points: Sequence[Point]) -> None:
    """Set limits and ticks: errors upwards to less, named by their accuracies; costs in numbers that can be read."""
    by_error(axis, [end for point in points for end in _ends(point)])
    costs = [point.cost for point in points]
    spread = (max(costs) / min(costs)) ** 0.08 * 1.15
    axis.set_xlim(min(costs) / spread, max(costs) * spread)
    axis.xaxis.set_major_formatter(FuncFormatter(_amount))
    decades = math.log10(max(costs) / min(costs))
    if decades < 0.7:  # hardly a tick is a power of ten, or twice or five times one
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(_Some() if decades < 2.3 else NullFormatter())


def by_error(axis: Any, errors: Sequence[float]) -> None:
    """Let the vertical axis have the logarithm of the error, less of it above, named by accuracies, all in percent."""
    axis.set_yscale("log")
    pad = 1.06 * (max(errors) / min(errors)) ** 0.08
    axis.set_ylim(max(errors) * pad, min(errors) / pad)
    axis.yaxis.set_minor_locator(NullLocator())
    inside = [tick for tick in _TICKS if min(errors) / pad <= tick <= max(errors) * pad]
    axis.yaxis.set_major_locator(FixedLocator(inside) if len(inside) >= 4 else MaxNLocator(6))
    axis.yaxis.set_major_formatter(FuncFormatter(_accuracy))


class _Some(LogFormatter):
    """Names twos and fives between the powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _amount(x) if f"{x:e}"[0] in "25" else ""


def _accuracy(error: float, _: int) -> str:
    return f"{100 - error:.6g}"


def _amount(value: float, _: int | None = None) -> str:
    """Write a large number in short.

    Example:
      >>> _amount(2000.0), _amount(1e6), _amount(500)
      ('2 k', '1 M', '500')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _name(axis: Any, points: Sequence[Point], renderer: Any) -> None:
    """Write each front point's label near it, where it covers no point and no other label, and no line if that can be had.

    A label for which there is no such place is left out; its point is in the legend.
    """
    inside = axis.get_window_extent(renderer)
    pixels = axis.transData.transform
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in pixels(list(zip(*_places(points))))]
    lines = [Bbox(pixels([(point.cost, end) for end in _ends(point)])) for point in points]
    for front in _fronts(points):
        for one, other in itertools.pairwise(front):
            corner = (other.cost, _height(one.accuracy))
            lines += [Bbox(pixels([(end.cost, _height(end.accuracy)), corner])) for end in (one, other)]
    for point in [point for mine in _by(points, "task").values() for point in pareto(mine)]:
        place = (point.cost, _height(point.accuracy))
        x, y = pixels(place)
        text = axis.annotate(point.label, place, (0, 0), textcoords="offset pixels", fontsize=8, zorder=5)
        box = text.get_window_extent(renderer)
        text.remove()
        options = [option for option in (_moved(box, x, y, step) for step in range(_STEPS)) if _within(option, inside)]
        options = [option for option in options if not _covers(option, taken)]
        if not options:
            continue
        chosen = min(options, key=lambda option: _from(option, x, y) + _DETOUR * _covers(option, lines))
        taken.append(chosen)
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 4}
        axis.annotate(
            point.label,
            place,
            ((chosen.x0 - x) * 72 / DPI, (chosen.y0 - y) * 72 / DPI),  # points, since other files have other pixels
            textcoords="offset points",
            fontsize=8,
            zorder=5,
            arrowprops=arrow if _from(chosen, x, y) > _NEAR else None,
        )


def _moved(box: Bbox, x: float, y: float, step: int) -> Bbox:
    """Return the label's box at one of twelve directions around its point, the farther the higher the step."""
    angle, distance = math.pi / 4 + (step % 12) * math.pi / 6, 12 + 9 * (step // 12)
    across, up = math.cos(angle), math.sin(angle)
    middle = (x + across * (distance + box.width / 2), y + up * (distance + box.height / 2))
    return Bbox.from_bounds(middle[0] - box.width / 2, middle[1] - box.height / 2, box.width, box.height)


def _within(box: Bbox, frame: Bbox) -> bool:
    return frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def _covers(box: Bbox, others: Sequence[Bbox]) -> int:
    """Count what a label would lie on."""
    room = box.padded(_ROOM)
    return sum(bool(room.overlaps(other)) for other in others)


def _from(box: Bbox, x: float, y: float) -> float:
    """Return how far a label is from its point."""
    return math.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
