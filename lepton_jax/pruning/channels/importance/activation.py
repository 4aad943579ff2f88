"""The rank of feature maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.axes import analyse_traced
from lepton_jax.graph.capture import capture
from lepton_jax.graph.trace import Apply, trace
from lepton_jax.pruning.channels.groups import Group, Place, number
from lepton_jax.pruning.channels.importance.base import Importance

_CONV = "conv_general_dilated"


@checked
@dataclass(frozen=True, kw_only=True)
class ActivationRank(Importance):
    """Score a channel by the mean rank of its feature maps: a map of low rank says little.

    Args:
      maps: ``{(kernel path, axis): [batch, channels, height, width]}``, e.g. from `feature_maps`.
      tolerance: singular values below this fraction of the largest count as 0; numpy's default if 0.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=3, indices=np.array([[0], [1]])),))
      >>> maps = np.stack([np.eye(3), np.ones((3, 3))])[None]
      >>> ActivationRank(maps={("kernel", 3): maps}).scores({}, [group])
      {('kernel', 3): array([3., 1.])}

    Source: Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020, "HRank: Filter pruning using high-rank feature map", equation 6.
    """

    maps: Mapping[Place, Any]
    tolerance: float = 0.0

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        tolerance = self.tolerance or None
        return {
            place: np.linalg.matrix_rank(np.asarray(maps, np.float64), rtol=tolerance).mean(axis=0)
            for place, maps in self.maps.items()
        }


@checked
def feature_maps(
    apply: Apply, variables: PyTree, *inputs: Any, keywords: Mapping[str, Any] | None = None
) -> dict[Place, np.ndarray]:
    """Return what every two-dimensional convolution gives for these inputs, by the axis of the kernel that makes the channels.

    Args:
      apply: ``apply(variables, *inputs, **keywords)``.
      variables: its variables.
      *inputs: a batch of examples.
      keywords: further arguments of `apply`.

    Returns:
      ``{(kernel path, axis): [batch, channels, height, width]}``.

    Raises:
      ValueError: if the graph has no convolution.

    Example:
      >>> import jax
      >>> def apply(v, x):
      ...     return jax.lax.conv_general_dilated(x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> maps = feature_maps(apply, {"kernel": np.ones((3, 3, 1, 4), np.float32)}, np.ones((2, 8, 8, 1), np.float32))
      >>> {place: found.shape for place, found in maps.items()}
      {('kernel', 3): (2, 4, 8, 8)}
    """
    keywords = dict(keywords or {})
    traced = trace(apply, variables, *inputs, **keywords)
    shapes = [aval.shape for aval in traced.in_avals[: len(traced.variables)]]
    analysis = analyse_traced(traced, number(shapes))
    owner = {id(a): (path, n) for path, v in zip(traced.variables, analysis.inputs) for n, a in enumerate(v.atoms)}
    run = capture(apply, _CONV)
    _, captured = jax.jit(lambda v, *xs: run(v, *xs, **keywords))(variables, *inputs)
    found = {}
    for record in analysis.records.values():
        name = traced.names.get(record.eqn.path)
        if record.eqn.primitive != _CONV or name not in captured:
            continue
        batch, feature, *space = record.eqn.params["dimension_numbers"].out_spec
        place = owner.get(id(record.outs[0].atoms[feature]))
        if place is not None and len(space) == 2 and captured[name].ndim == 4:
            found[place] = np.asarray(captured[name]).transpose(batch, feature, *space)
    return found
