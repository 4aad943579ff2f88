"""The recipe, the same for every task: whole channels removed, weights in int8, or both."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import study
from experiments.common.deployed import logits
from experiments.common.objectives import Divergence
from lepton_jax import cast, chain, fake_quant, identity
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.channels import plan
from lepton_jax.quantization import Uniform
from lepton_jax.training import ModelApply
from lepton_jax.tuning import Bits, Budget, Sparsity, allocate, measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """What is done with a trained network before it is fine-tuned."""

    removed: float = 0.0
    """Fraction of the parameters that go with whole channels, the same share of every group of coupled ones, those of least
    absolute weights."""
    bits: int | None = None
    """Of the weights with two axes or more, one scale a leaf, trained through their rounding; parameters with one axis are
    then bfloat16. None: float32."""
    taught: bool = False
    """Whether the dense network's outputs are learned from besides."""
    share: float | None = None
    """Of the dense weights' bytes that are left: every layer's bits and zeros are found by `lepton_jax.tuning`, on training
    examples, and then trained. None: nothing is looked for."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        check_fraction(f"Row {self.name!r}: removed", self.removed)
        if self.bits is not None:
            Uniform(bits=self.bits)
        if self.share is not None and not 0 < self.share < 1:
            yield f"share: must be in (0, 1); got {self.share}"

    @property
    def transform(self) -> Transform:
        """The view that the network is fine-tuned under, and packed by."""
        if self.bits is None:
            return identity()
        return chain(fake_quant(Uniform(bits=self.bits)), cast("bfloat16", select=_vectors))


DENSE = "dense"
ROWS = (
    Row(name=DENSE),
    Row(name="pruned", removed=0.35),
    Row(name="int8", bits=8),
    Row(name="small", removed=0.35, bits=8),
    Row(name="distilled", removed=0.35, taught=True),
    Row(name="tuned", share=0.125),
)
"""All of it; "small" is pruned and int8."""


def within(
    share: float, apply: ModelApply, params: PyTree, model_state: PyTree, batches: Sequence[Array], divergence: Divergence
) -> Transform:
    """Return the transform of the recipe that spoils a network's outputs least with a share of its bytes.

    Args:
      share: of the float32 bytes of all parameters.
      apply: the model.
      params: trained.
      model_state: its other collections.
      batches: of inputs to calibrate on.
      divergence: see `lepton_jax.tuning.measure`.
    """

    def run(params: PyTree, images: Array) -> Array:
        return logits(apply, {"params": params, **model_state}, images)

    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    table = measure(run, params, batches, [Bits(2, 3, 4, 6, 8), Sparsity(0.5)], divergence=divergence, progress=False)
    return allocate(table, Budget(bytes=share * size)).transform()


def without_channels(
    apply: ModelApply, params: PyTree, model_state: PyTree, images: Array, fraction: float, round_to: int = 1
) -> tuple[ModelApply, PyTree, PyTree]:
    """Return a network without its least channels: function, parameters and other collections.

    Args:
      apply: the model.
      params: trained.
      model_state: its other collections.
      images: an example of the inputs.
      fraction: of the parameters, removed at least; 0 returns the network as it is.
      round_to: what the channels that are left are a multiple of.
    """
    if not fraction:
        return apply, params, model_state
    variables = {"params": params, **model_state}
    made = plan(partial(logits, apply), variables, images, fraction=fraction, of="parameters", round_to=round_to)
    predict, learn = made.rewrite(partial(logits, apply)), made.rewrite(partial(_learning, apply))

    def small(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        variables = {"params": params, **model_state}
        if not train:
            return predict(variables, inputs), model_state
        return learn(variables, inputs, jax.random.key(0) if key is None else key)

    left = jax.tree.map(jnp.asarray, made.shrink(variables))
    return small, left.pop("params"), left


def _learning(apply: ModelApply, variables: PyTree, inputs: Any, key: Array) -> tuple[Array, PyTree]:
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return apply(variables["params"], rest, inputs, train=True, key=key)


def _vectors(path: Path, leaf: Any) -> bool:
    del path
    return leaf.ndim < 2
