"""N of every M."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect, is_traced
from lepton_jax.core.typing import Array, Path
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.pruning.masks import keep_count, n_of_m
from lepton_jax.pruning.structures.base import Shape, Structure, complaints
from lepton_jax.pruning.units import check_groups


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class NofM(Structure):
    """Of every `m` consecutive weights along an axis, `n` are kept; see `lepton_jax.pruning.masks.n_of_m`.

    Under a schedule, every group keeps ``m - round(sparsity * m)`` now, so that the masks change in whole weights a group, and
    where the schedule arrives, at ``1 - n / m``, it keeps n.

    Args:
      n, m: whole numbers, 1 <= n <= m.
      axis: along which groups lie. -2 is the inputs of a Flax kernel, over which a product sums: what sparse hardware needs. If
        the selector knows the use of a leaf (see `lepton_jax.graph.weights`), -2 is the inputs in any layout.
      pad: allow an axis that `m` does not divide; its last group, of ``r < m``, keeps ``min(n, r)``, and the leaf then keeps a
        little more than ``n / m``.

    Raises:
      ValueError: for n > m; by `check`, for a sparsity that is not ``1 - n / m``, or leaves that lack the axis or whose axis
        `m` does not divide (unless `pad`), all of them named.

    Example:
      >>> import jax.numpy as jnp
      >>> NofM(n=2, m=4, axis=-1).mask(jnp.array([4.0, 1.0, 2.0, 3.0]), 0.5).tolist()
      [True, False, False, True]

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks"; Zhou et al. 2021, "Learning N:M fine-grained
    structured sparse neural networks from scratch" (any N and M).
    """

    n: int
    m: int
    axis: int = -2
    pad: bool = False
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("NofM: m", self.m, 1)
        check_whole("NofM: n", self.n, 1, self.m)

    def at(self, axes: WeightAxes | None) -> Structure:
        if axes is None or self.axis != -2:
            return self
        return dataclasses.replace(self, axis=(axes.inputs or axes.spatial)[-1])

    def check(self, shapes: Mapping[Path, Shape], sparsity: float | Array) -> None:
        wanted = 1 - self.n / self.m
        with collect(f"NofM(n={self.n}, m={self.m}, axis={self.axis}, pad={self.pad})") as problems:
            if not is_traced(sparsity) and not math.isclose(float(sparsity), wanted, abs_tol=1e-6):
                problems.append(
                    f"{self.n} of {self.m} is a sparsity of 1 - {self.n}/{self.m} = {wanted:.6g}; got {sparsity}. "
                    f"Write prune({self.m - self.n} / {self.m}, ...), or that as the target of the schedule."
                )
            problems.extend(complaints(shapes, self._fits))

    def mask(self, scores: Array, sparsity: float | Array) -> Array:
        return n_of_m(scores, keep_count(self.m, sparsity), self.m, self.axis, pad=self.pad)

    def _fits(self, shape: Shape) -> None:
        check_groups(self.m, self.axis, shape, self.pad)
