"""Sensitivities, and what can be had at which size, as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from lepton_jax.core.extras import pyplot
from lepton_jax.core.foreign_text import shown


def heat_map(
    path: str | os.PathLike[str],
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    divergence: str,
) -> None:
    """Draw a table of losses on a logarithmic scale, with the numbers in the cells.

    Args:
      path: of a picture, .png, .svg or .pdf.
      rows: names of the layers.
      columns: names of the choices.
      values: losses; None where a choice does not fit a layer.
      divergence: what they are.
    """
    plt = pyplot()

    losses = np.array([[np.nan if one is None else one for one in row] for row in values], float)
    positive = losses[losses > 0]
    least = float(positive.min()) if positive.size else 1.0
    figure, axes = plt.subplots(figsize=(2.5 + 0.75 * len(columns), 1.6 + 0.32 * len(rows)), layout="constrained")
    try:
        image = axes.imshow(np.log10(np.maximum(losses, least)), aspect="auto", cmap="cividis")
        for row, column in np.argwhere(~np.isnan(losses)):
            bright = float(image.norm(np.log10(max(losses[row, column], least)))) > 0.6  # type: ignore[arg-type]
            text = f"{losses[row, column]:.1g}" if losses[row, column] else "0"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="black" if bright else "white")
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), [shown(name, 40) for name in rows], fontsize=8)
        unit = "KL divergence, nats" if divergence == "kl" else "relative squared error"
        axes.set_title(f"What each choice does to the outputs, alone ({unit})", fontsize=9)
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)
