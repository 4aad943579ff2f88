"""AC/DC: alternating compressed and dense phases."""

from typing import Literal

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.schedules import periodic
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Select
from lepton_jax.pruning.allocation import Allocation, uniform
from lepton_jax.pruning.prune import prune


@checked
@named
def ac_dc(
    sparsity: float,
    *,
    begin: int,
    end: int,
    compressed: int,
    dense: int,
    scope: Literal["layer", "global"] = "global",
    allocation: Allocation = uniform,
    select: Select = paths.matrices,
) -> Transform:
    """Train compressed and dense in turn, and end compressed.

    At the start of each compressed phase the masks are made anew by ``|w|`` and stay for the phase: pruned weights are zero
    and get no gradient. In a dense phase every weight trains, the pruned ones from zero. With ``masked_moments(tx)`` they
    start with fresh moments too. This is ``prune(periodic(...))``, and its state `lepton_jax.pruning.PruneState`.

    Args:
      sparsity: of the compressed phases, [0, 1).
      begin: the first step of the first compressed phase; before it, all is dense (the paper's warm-up).
      end: from here on compressed for good; the paper leaves the last phase longer, to tune.
      compressed, dense: lengths of the phases, in steps.
      scope: "global": one threshold for all leaves; "layer": each leaf has its own.
      allocation: in scope "layer", gives each leaf its sparsity.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a sparsity outside [0, 1), an end that is not after the beginning, a phase without steps, or a selector
        that
        matches nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = ac_dc(0.5, begin=0, end=4, compressed=2, dense=2)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])})
      >>> _, state = transform.update(params, state, params, 2)
      >>> int(state.masks["kernel"].sum())
      4

    Source: Peste et al. 2021, "AC/DC: alternating compressed/decompressed training of deep neural networks", algorithm 1.
    """
    schedule = periodic(sparsity, begin=begin, end=end, compressed=compressed, dense=dense)
    return prune(schedule, scope=scope, allocation=allocation, select=select)
