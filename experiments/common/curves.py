"""Figures of studies: means and deviations over seeds, as curves or as dots, in one or several panels."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common.figures import COLORS, DPI, by_error, look, save_figure
from experiments.common.labels import NEAR_THE_END, End, label_ends
from experiments.common.names import readable
from experiments.common.results import Result, accuracies, deviation

_LOOKS = ("-", "--", ":")
_MOST = 8
"""Curves a panel; those of one with more stand in two panels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A series of points, each of several seeds."""

    label: str
    x: Sequence[float]
    y: Sequence[Sequence[float]]
    """Values by seed."""
    look: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How it is drawn, in matplotlib's words; by default a marker and a colour of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes with curves on them."""

    curves: Sequence[Curve]
    title: str = ""
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Values to compare with, drawn as dashed lines."""
    ticks: Mapping[float, str] = dataclasses.field(default_factory=dict)
    """Places on the horizontal axis, and their names."""
    x_scale: str = "linear"
    falling: bool = False
    """Whether it falls from left to right."""
    y_scale: str = "linear"
    """As matplotlib has it, or 'error': accuracies in percent, by the logarithm of the error."""
    seeds: bool = False
    """Show every seed as a dot."""


def by_row(results: Sequence[Result], x: Callable[[Result], float], **look: Any) -> list[Curve]:
    """Return a curve of accuracies for each row, in its own order.

    Args:
      results: of the rows.
      x: the place of a result.
      look: of all curves, in matplotlib's words.

    Example:
      >>> results = [{"row": "a", "error": [0.5], "bits": bits} for bits in (8, 4)]
      >>> [(curve.label, curve.x, curve.y) for curve in by_row(results, lambda result: result["bits"])]
      [('a', [8, 4], [[50.0], [50.0]])]
    """
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result["row"], []).append(result)
    return [Curve(label=row, x=[x(one) for one in mine], y=[*map(accuracies, mine)], look=look) for row, mine in rows.items()]


def draw(
    path: Path,
    panels: Sequence[Panel],
    *,
    x: str = "",
    y: str,
    columns: int = 2,
    size: tuple[float, float] = (7, 4.6),
    shared: bool = False,
) -> None:
    """Draw all panels; bars are one standard deviation.

    Args:
      path: of the PNG; an SVG and a PDF stand beside it.
      panels: those without curves are left out.
      x: the name of the horizontal axes.
      y: the name of the vertical axes.
      columns: panels side by side.
      size: of a panel, in inches.
      shared: whether all panels have the same vertical axis.
    """
    given = [panel for panel in panels if panel.curves or panel.levels] or list(panels[:1])
    groups = [_halves(panel) for panel in given]
    shown = [panel for group in groups for panel in group]
    columns = min(columns, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=shared).flat)
    for axis in axes[len(shown) :]:
        axis.remove()
    alike = {id(panel): shown if shared else group for group in groups for panel in group}
    for axis, panel in zip(axes, shown):
        _panel(axis, panel, alike[id(panel)])
    for group in groups:
        _one_range([axis for axis, panel in zip(axes, shown) if panel in group])
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    label_ends({axis: ends for axis, panel in zip(axes, shown) if (ends := _ends(axis, panel))}, canvas)
    save_figure(figure, path)


def _halves(panel: Panel) -> list[Panel]:
    """The panel, or two with half of its curves each, where one would be hard to read."""
    if len(panel.curves) <= _MOST:
        return [panel]
    half = -(-len(panel.curves) // 2)
    return [dataclasses.replace(panel, curves=some) for some in (panel.curves[:half], panel.curves[half:])]


def _one_range(axes: Sequence[Any]) -> None:
    """Give axes the range that all of theirs need, from the top of the first to its bottom as before."""
    limits = [sorted(axis.get_ylim()) for axis in axes]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for axis in axes:
        axis.set_ylim(*((low, high) if axis.get_ylim()[0] <= axis.get_ylim()[1] else (high, low)))


def _ends(axis: Any, panel: Panel) -> dict[str, End]:
    """Where every curve ends, for names there; none, and a legend, where two curves or more end far from the right."""
    hidden = panel.y_scale == "error"
    ends: dict[str, End] = {}
    for number, curve in enumerate(panel.curves):
        if curve.label[:1] != "_":
            x, y = (min if panel.falling else max)(zip(curve.x, curve.y, strict=True), key=lambda pair: pair[0])
            color = {**look(number), **curve.look}["color"]
            ends[readable(curve.label)] = End(x, 100 - statistics.mean(y) if hidden else statistics.mean(y), color)
    left, right = axis.transAxes.transform([(0, 0), (1, 0)])[:, 0]
    share = {name: (axis.transData.transform((end.x, end.y))[0] - left) / (right - left) for name, end in ends.items()}
    if len(ends) < 2 or sum(place < NEAR_THE_END for place in share.values()) > 1:
        if ends or panel.levels:
            axis.legend(fontsize=8)
        return {}
    edge = axis.get_xlim()[1]
    return {**ends, **{readable(name): End(edge, 100 - y if hidden else y, "0.4") for name, y in panel.levels.items()}}


def _panel(axis: Any, panel: Panel, alike: Sequence[Panel]) -> None:
    """Draw one panel's curves; the vertical axis is long enough for all that are alike."""
    hidden = panel.y_scale == "error"
    for number, curve in enumerate(panel.curves):
        shape = {**look(number), "linestyle": _LOOKS[number // len(COLORS) % len(_LOOKS)]}
        values = [[100 - value for value in some] if hidden else list(some) for some in curve.y]
        means, bars = [statistics.mean(some) for some in values], [deviation(some) for some in values]
        how = {**shape, "markersize": 5, "capsize": 3, "linewidth": 1.2, **curve.look}
        axis.errorbar(curve.x, means, bars, label=curve.label if curve.label[:1] == "_" else readable(curve.label), **how)
        for x, some in zip(curve.x, values if panel.seeds else []):
            axis.plot([x] * len(some), some, ".", color=how["color"], alpha=0.4)
    for name, level in panel.levels.items():
        axis.axhline(100 - level if hidden else level, color="0.4", linestyle="--", linewidth=1, label=readable(name))
    axis.set_title(readable(panel.title), fontsize=10)
    _scale(axis, panel, alike)
    axis.grid(color="0.92")


def _scale(axis: Any, panel: Panel, alike: Sequence[Panel]) -> None:
    """Set scales, limits and ticks."""
    if panel.x_scale == "log":
        places = [x for curve in panel.curves for x in curve.x] or [1.0]
        axis.set_xlim(min(places) / 1.15, 1.15 * max(places))  # before the scale, since one point alone has no range
        axis.set_xscale("log")
    if panel.ticks:
        names = [readable(name) for name in panel.ticks.values()]
        turned = max(map(len, names)) * len(names) > 60
        axis.set_xticks(list(panel.ticks), names, **({"rotation": 35, "ha": "right"} if turned else {}))
        axis.xaxis.minorticks_off()
    if panel.falling:
        axis.invert_xaxis()
    values = [100 - value for other in alike for curve in other.curves for some in curve.y for value in some]
    values += [100 - level for other in alike for level in other.levels.values()]
    if panel.y_scale == "error" and values:
        by_error(axis, [max(value, 0.01) for value in values])
    elif panel.y_scale == "log":
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
