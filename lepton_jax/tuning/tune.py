"""From a model and what it may cost and lose to the compressed model, with nothing else to set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree, Select
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.trace import Apply
from lepton_jax.tuning.allocate import allocate
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.measure import measure
from lepton_jax.tuning.options import Bits, Option, Rank, Sparsity
from lepton_jax.tuning.outputs import Outputs
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.refine import refine
from lepton_jax.tuning.table import Table

OPTIONS: tuple[Option, ...] = (Bits(2, 3, 4, 6, 8), Sparsity(0.5, 0.75), Rank(0.25, 0.5))
"""What `tune` tries by default."""
_HALVINGS = 10


class Tuned(NamedTuple):
    """What `tune` found.

    Attributes:
      variables: packed; where channels go, of ``recipe.rewrite(apply)``.
      recipe: how they were made, with the measured loss.
      changed: the share of the answers (largest logits) on the batches that are others than the model's.
      table: of `measure`.
    """

    variables: PyTree
    recipe: Recipe
    changed: float
    table: Table

    def __str__(self) -> str:
        return f"{self.recipe}\n{100 * self.changed:.2f} % of the answers on the batches changed"


@checked
def tune(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    *,
    bytes: float | str | None = None,
    macs: float | None = None,
    loss: float | str | None = None,
    file_bytes: float | str | None = None,
    latency: float | None = None,
    options: Sequence[Option] = OPTIONS,
    select: Select | None = None,
    evaluations: int = 100,
    progress: bool = True,
) -> Tuned:
    """Measure, allocate and refine: the best recipe within the limits, or the smallest that loses no more.

    With a limit of bytes or multiply-accumulates, the least measured loss is looked for; with a limit of the loss alone, the
    fewest bytes whose measured loss, of all layers together, is within it. Nothing is trained: put the recipe's transform into
    a training step for more.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode, which returns logits.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      bytes: see `Budget`: "50kB".
      macs: see `Budget`.
      file_bytes: see `Budget`.
      latency: see `Budget`.
      loss: measured: a KL divergence to the model's outputs in nats, or "0.5%" of the answers that may change.
      options: what to try.
      select: which leaves; None: all weights.
      evaluations: the most recipes that `refine` measures; 0: none.
      progress: show bars.

    Raises:
      ValueError: for no limit, or limits that cannot be kept, with what can.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> variables = {"w": jax.random.normal(jax.random.key(0), (32, 8))}
      >>> x = jax.random.normal(jax.random.key(1), (64, 32))
      >>> found = tune(lambda v, x: x @ v["w"], variables, [x], bytes=200, options=[Bits(2, 4, 8)], progress=False)
      >>> found.recipe.bytes <= 200, found.variables["w"].format.bits
      (True, 4)
    """
    share = _share(loss)
    limits = {"bytes": bytes, "macs": macs, "file_bytes": file_bytes, "latency": latency}
    costs: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    if not costs and loss is None:
        raise ValueError(
            'tune: give at least one limit: bytes="50kB", macs=1e6, file_bytes="60kB", latency=1e-3, or loss="0.5%".'
        )
    asked = Budget(**costs) if costs else None
    given = list(batches)
    engine: Any = "onnxruntime" if latency is not None else None
    table = measure(apply, variables, given, options, select=select, engine=engine, progress=progress)
    outputs = Outputs(apply, variables, [as_inputs(batch) for batch in given], "kl")
    packing = table.packing
    assert packing is not None  # a table that was measured has the variables

    def lost(recipe: Recipe) -> float:
        seen = packing.seen(recipe.choices, recipe.channels)
        return outputs.changed(seen) if share is not None else outputs.of(seen)

    limit = share if share is not None else loss
    if asked is None:
        budget, recipe = _smallest(table, float(limit), lost)  # type: ignore[arg-type]
    else:
        budget, recipe = asked, allocate(table, asked)
    if evaluations:
        better = refine(recipe, table, budget, apply, given, evaluations=evaluations, progress=progress).recipe
        recipe = better if limit is None or lost(better) <= max(float(limit), lost(recipe)) else recipe
    seen = packing.seen(recipe.choices, recipe.channels)
    recipe = dataclasses.replace(recipe, measured=outputs.of(seen))
    if limit is not None and (reached := lost(recipe)) > float(limit):
        least, _ = _smallest(table, float(limit), lost)
        raise ValueError(
            f"tune: the best within the budget loses {_text(reached, share)}, more than loss={_text(float(limit), share)}; "
            f"bytes={least.bytes:,} would do, or a model that is trained with the recipe."
        )
    return Tuned(packing.packed(recipe.choices, recipe.channels), recipe, outputs.changed(seen), table)


def _smallest(table: Table, limit: float, lost: Any) -> tuple[Budget, Recipe]:
    """The fewest bytes whose measured loss is within a limit: what the table may predict is found by halving.

    Layers spoil each other's work, so that much less may be predicted than is measured.
    """
    units = [*table.cells.values(), *(table.groups.cells.values() if table.groups else ())]
    worst = sum(max((cell.loss for cell in cells.values()), default=0.0) for cells in units)  # type: ignore[attr-defined]
    low, high = 0.0, max(worst, 1e-9)
    best = allocate(table, Budget(loss=1e-12))  # as the model is
    for _ in range(_HALVINGS):
        middle = high / 8 if low == 0 else (low * high) ** 0.5
        found = allocate(table, Budget(loss=middle))
        if lost(found) <= limit:
            low, best = middle, min(best, found, key=lambda one: one.bytes)
        else:
            high = middle
    return Budget(bytes=best.bytes), best


def _share(loss: float | str | None) -> float | None:
    """``"0.5%"`` as 0.005; None for a number."""
    if not isinstance(loss, str):
        if loss is not None and not loss > 0:
            raise ValueError(f'tune: loss must be above 0: a KL divergence in nats, or such as "0.5%"; got {loss!r}.')
        return None
    try:
        share = float(loss.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not loss.strip().endswith("%") or not 0 <= share < 1:
        raise ValueError(f'tune: loss must be a KL divergence in nats, or the answers that may change, "0.5%"; got {loss!r}.')
    return share


def _text(value: float, share: float | None) -> str:
    return f"{value:.3g} nats" if share is None else f"{100 * value:.3g} %"
