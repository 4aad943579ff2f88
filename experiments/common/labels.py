"""Names at the ends of curves, in place of a legend."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg

NEAR_THE_END = 0.6
"""Of the width: a curve that ends before has its name at its last point, not beside the frame."""
_GAP = 8.0
"""Points from the frame to the names."""


class End(NamedTuple):
    """The last point of a curve.

    Example:
      >>> End(1.0, 2.0, "C0").color
      'C0'
    """

    x: float
    y: float
    color: Any


def label_ends(named: Mapping[Any, Mapping[str, End]], canvas: FigureCanvasAgg) -> None:
    """Write each name right of its frame, level with its end or as near as the others leave room; lines lead to them.

    Names stand in the order of the ends, so that no two lines cross.

    Args:
      named: by axis, with its final limits.
      canvas: of the figure; its layout is settled here.
    """
    for axis, ends in named.items():
        longest = max(ends, key=len)
        axis.annotate(longest, (1, 0.5), (_GAP, 0), xycoords="axes fraction", textcoords="offset points", fontsize=8, alpha=0)
    canvas.draw()  # makes room for the names, and says where everything lies
    canvas.figure.set_layout_engine("none")
    for axis, ends in named.items():
        room = axis.texts[-1].get_window_extent(canvas.get_renderer()).height
        axis.texts[-1].remove()
        frame = axis.get_window_extent(canvas.get_renderer())
        pixels = {name: axis.transData.transform((end.x, end.y)) for name, end in ends.items()}
        late = {name: y for name, (x, y) in pixels.items() if x >= frame.x0 + NEAR_THE_END * frame.width}
        order = sorted(late, key=late.__getitem__)
        for name, place in zip(order, spread(sorted(late.values()), 1.2 * room)):
            edge = 1 + _GAP * canvas.figure.dpi / 72 / frame.width
            _write(
                axis,
                name,
                ends[name],
                xytext=(edge, (place - frame.y0) / frame.height),
                textcoords="axes fraction",
                va="center",
            )
        for name in ends.keys() - late.keys():
            _write(axis, name, ends[name], xytext=(6, 4), textcoords="offset points", line=False)


def _write(axis: Any, name: str, end: End, *, line: bool = True, **where: Any) -> None:
    arrow = {"arrowstyle": "-", "color": end.color, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3}
    how = {"fontsize": 8, "color": end.color, "annotation_clip": False, "arrowprops": arrow if line else None}
    axis.annotate(name, (end.x, end.y), **where, **how)


def spread(places: list[float], gap: float) -> list[float]:
    """Move places, in order, so that none is nearer than `gap` to the next, each as little as that allows.

    Neighbours that meet become a block around the mean of where they would be; blocks that meet become one.

    Example:
      >>> spread([0.0, 1.0, 10.0], 4.0)
      [-1.5, 2.5, 10.0]
    """
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and _start(blocks[-1], gap) < _start(blocks[-2], gap) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, gap) + gap * number for block in blocks for number in range(len(block))]


def _start(block: list[float], gap: float) -> float:
    """Where the first of a block stands so that all are as near to their places as they can be."""
    return sum(place - gap * number for number, place in enumerate(block)) / len(block)
