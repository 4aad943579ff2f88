"""A choice for each layer as one transform."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import unpack
from lepton_jax.core.transform import Transform, chain, identity, pack
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.formats import Uniform
from lepton_jax.graph.roles import Role, Roles, Weights
from lepton_jax.lowrank.method import Method, as_tuple
from lepton_jax.lowrank.ranks import Fraction
from lepton_jax.lowrank.svd import Svd
from lepton_jax.lowrank.transform import low_rank
from lepton_jax.pruning.prune import prune
from lepton_jax.pruning.structures import NofM
from lepton_jax.quantization.fake_quant import fake_quant
from lepton_jax.tuning.options import Choice


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A weight of the model.

    Args:
      shape: of the leaf.
      axes: what its axes are.
      macs: multiply-accumulates with it in one call, dense.

    Example:
      >>> layer = Layer(shape=(8, 6), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=48.0)
      >>> layer.macs_of(Choice(rank=2))
      28.0
    """

    shape: tuple[int, ...]
    axes: WeightAxes
    macs: float

    @property
    def method(self) -> Method:
        """Its factorization."""
        return Svd().placed(self.axes)

    def settled(self, choice: Choice) -> Choice | None:
        """Return the choice with its rank as a whole number; None where it does not fit, or makes nothing smaller.

        Example:
          >>> layer = Layer(shape=(8, 6), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=48.0)
          >>> layer.settled(Choice(rank=0.5)).rank, layer.settled(Choice(rank=0.9)), layer.settled(Choice(kept=(3, 16)))
          (3, None, None)
        """
        if choice.kept and not self._divides(choice.kept[1]):
            return None
        if not choice.rank:
            return choice
        method = self.method
        if method.refusal(self.shape) is not None:
            return None
        most = as_tuple(method.max_rank(self.shape))[0]
        rank = max(1, as_tuple(Fraction(fraction=choice.rank).of(most))[0]) if choice.rank < 1 else int(choice.rank)
        smaller = method.parameters(self.shape, rank) < math.prod(self.shape)
        return dataclasses.replace(choice, rank=rank) if rank <= most and smaller else None

    def macs_of(self, choice: Choice) -> float:
        """Multiply-accumulates of a settled choice: factors save some, zeros and bits none in a dense engine."""
        return (
            self.macs * self.method.parameters(self.shape, int(choice.rank)) / math.prod(self.shape)
            if choice.rank
            else self.macs
        )

    def _divides(self, m: int) -> bool:
        summed = self.axes.inputs or self.axes.spatial
        return bool(summed) and self.shape[summed[-1]] % m == 0


def transform_of(layers: Mapping[Path, Layer], choices: Mapping[Path, Choice]) -> Transform:
    """Return the transform that shows every layer as its settled choice has it: factors, then zeros, then few bits.

    Example:
      >>> import jax.numpy as jnp
      >>> layers = {"w": Layer(shape=(2, 2), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=4.0)}
      >>> transform = transform_of(layers, {"w": Choice(sparsity=0.5)})
      >>> transform.view(*transform.init({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}))["w"].tolist()
      [[0.0, 0.0], [3.0, 4.0]]
    """

    def among(chosen: Iterable[Path]) -> Weights:
        roles = {path: Role(kind="weight", axes=layers[path].axes) for path in chosen}
        return Weights(Roles(roles, {path: layers[path].shape for path in roles}))

    def grouped(name: str) -> dict[Any, list[Path]]:
        found: dict[Any, list[Path]] = {}
        for path, choice in choices.items():
            if value := getattr(choice, name):
                found.setdefault(value, []).append(path)
        return found

    parts = [low_rank(int(rank), select=among(chosen)) for rank, chosen in grouped("rank").items()]
    parts += [prune(sparsity, select=among(chosen)) for sparsity, chosen in grouped("sparsity").items()]
    parts += [prune(1 - n / m, structure=NofM(n=n, m=m), select=among(chosen)) for (n, m), chosen in grouped("kept").items()]
    parts += [fake_quant(_format(bits), select=among(chosen)) for bits, chosen in grouped("bits").items()]
    return chain(*parts) if parts else identity()


class Made(NamedTuple):
    """What a choice makes of a weight.

    Attributes:
      packed: a packed leaf, or an array.
      view: as the model sees it.
    """

    packed: PyTree
    view: Array


@partial(jax.jit, static_argnames=("axes", "choices"))
def made_of(leaf: Array, axes: WeightAxes, choices: tuple[Choice, ...]) -> list[Made]:
    """Return what each settled choice makes of a weight: one program for weights of the same shape and axes.

    Example:
      >>> import jax.numpy as jnp
      >>> axes = WeightAxes(inputs=(0,), outputs=(1,))
      >>> [made] = made_of(jnp.array([[1.0], [-1.5]]), axes, (Choice(bits=2),))
      >>> made.packed.qvalue.tolist(), made.view.tolist()
      ([[1], [-2]], [[1.0], [-2.0]])
    """
    layers, found = {"w": Layer(shape=tuple(leaf.shape), axes=axes, macs=0.0)}, []
    for choice in choices:
        transform = transform_of(layers, {"w": choice})
        packed = pack(transform, *transform.init({"w": leaf}))
        found.append(Made(packed["w"], unpack(packed)["w"]))
    return found


def _format(bits: int) -> Uniform:
    return Uniform(bits=bits, channel_axis="out")
