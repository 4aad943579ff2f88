"""A plan as a picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lepton_jax.core.extras import pyplot
from lepton_jax.core.foreign_text import shown

if TYPE_CHECKING:
    from lepton_jax.stages.plan import Plan

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def draw(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Draw the stages side by side: how much of the work and of the parameters each has, and what goes from one to the next.

    Args:
      plan: of a model.
      path: of a picture, .png, .svg or .pdf.
    """
    plt = pyplot()

    facts = plan.stages_of
    macs, parameters = (_shares([getattr(one, name) for one in facts]) for name in ("macs", "parameters"))
    top = max(*macs, *parameters) or 1.0
    figure, axes = plt.subplots(figsize=(1.9 * len(facts) + 2, 3.4))
    try:
        for number, one in enumerate(facts):
            axes.bar(number - 0.17, macs[number], 0.3, color="#0072B2", label="multiply-accumulates" if number == 0 else None)
            axes.bar(number + 0.17, parameters[number], 0.3, color="#E69F00", label="parameters" if number == 0 else None)
            into = "inputs" if number == 0 else ""
            axes.annotate(f"{into} {short(one.bytes_in)}B →", (number - 0.5, 1.08 * top), ha="center", fontsize=8)
        axes.annotate(f"→ {short(facts[-1].bytes_out)}B", (len(facts) - 0.5, 1.08 * top), ha="center", fontsize=8)
        scopes = ["/".join(one.first.split("/")[-3:-1]) or one.first for one in facts]
        axes.set_xticks(range(len(facts)), [f"{n}: {shown(scope, 26)}" for n, scope in enumerate(scopes)], fontsize=8)
        axes.set(
            ylim=(0, 1.2 * top), xlim=(-0.8, len(facts) - 0.2), ylabel="% of the model", title="Stages, and bytes between them"
        )
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, bbox_inches="tight", dpi=150)
    finally:
        plt.close(figure)


def short(count: float) -> str:
    """Return a count in few letters.

    Example:
      >>> short(512), short(98304), short(2.5e6)
      ('512 ', '98.3 k', '2.5 M')
    """
    for size, letter in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f} "


def _shares(counts: list[int]) -> list[float]:
    return [100 * count / max(sum(counts), 1) for count in counts]
