"""The teacher: a trained model that runs without gradient, in its own precision, dense or packed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import is_packed
from lepton_jax.core.transform import Transform, identity
from lepton_jax.core.typing import ModelApply, PyTree
from lepton_jax.distillation.taps import Outputs, tapped
from lepton_jax.native.interpreter import packed
from lepton_jax.training.state import TrainState

Teach = Callable[[Any], Outputs]
"""``images -> Outputs``: a teacher, an ensemble of them, or anything else that answers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """Hold a trained model to learn from.

    Args:
      apply: the model, e.g. ``linen_apply(module)``; always called with ``train=False``.
      params: as the model sees them; packed leaves (`QArray`, `LowRank`, ...) run packed.
      model_state: other collections, e.g. batch statistics.
      dtype: of the computation: floating parameters (those that are not packed) and inputs are cast to it.

    Raises:
      ValueError: if the dtype is not floating.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.training import linen_apply
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> teacher = Teacher(apply=linen_apply(nn.Dense(2)), params=params, dtype="bfloat16")
      >>> teach(teacher)(jnp.ones((1, 2))).logits
      Array([[1, 1]], dtype=bfloat16)
    """

    apply: ModelApply
    params: PyTree
    model_state: PyTree = field(default_factory=dict)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"Teacher: dtype must be floating, e.g. 'bfloat16'; got {self.dtype!r}.")


@checked
def as_teacher(apply: ModelApply, state: TrainState, transform: Transform = identity()) -> Teacher:
    """Make a teacher of what was trained, with its parameters as the model saw them.

    Args:
      apply: the model.
      state: a finished run's state (of `part`, if it had parts); copied, so that the run may go on.
      transform: the view it was trained under.

    Example:
      >>> import optax
      >>> from flax import linen as nn
      >>> from lepton_jax.training import create, linen_apply
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> state = create(params, {}, optax.sgd(0.1), identity(), jax.random.key(0))
      >>> teach(as_teacher(linen_apply(nn.Dense(2)), state))(jnp.ones((1, 2))).logits.tolist()
      [[1.0, 1.0]]
    """
    seen, model_state = jax.tree.map(jnp.copy, (transform.view(state.params, state.tstate), state.model_state))
    return Teacher(apply=apply, params=seen, model_state=model_state)


@checked
def teach(teacher: Teacher, taps: tuple[str, ...] = ()) -> Teach:
    """Return the teacher as a compiled function of inputs alone; no gradient goes through it.

    Args:
      teacher: the model.
      taps: patterns of the features to hand out, normally `Distill.teacher_taps`.

    Returns:
      ``images -> Outputs``.

    Raises:
      ValueError: when called, if a tap matches nothing.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.training import linen_apply
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         x = nn.relu(nn.Dense(3)(x))
      ...         return nn.Dense(2)(x)
      >>> params = Net().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
      >>> outputs = teach(Teacher(apply=linen_apply(Net()), params=params), ("Dense_0",))(jnp.ones((5, 4)))
      >>> outputs.logits.shape, outputs.features["Dense_0"][0].shape
      ((5, 2), (5, 3))
    """
    leaves = jax.tree.leaves(teacher.params, is_leaf=is_packed)
    run = tapped(packed(teacher.apply) if any(map(is_packed, leaves)) else teacher.apply, tuple(taps), "teacher")

    @jax.jit
    def forward(params: PyTree, model_state: PyTree, images: Any) -> Outputs:
        (logits, _), features = run(params, model_state, _cast(images, teacher.dtype), train=False, key=None)
        return jax.lax.stop_gradient(Outputs(logits, features))

    # Arguments of the compiled function, not constants in it.
    held = jax.device_put((_cast(teacher.params, teacher.dtype), teacher.model_state))
    return lambda images: forward(*held, images)


class TaughtBatch(NamedTuple):
    """A batch with the teacher's answers.

    Attributes:
      images: inputs.
      labels: int32 ``[B]``.
      mask: bool ``[B]``.
      teacher: what the teacher gave for these inputs.
    """

    images: Any
    labels: Any
    mask: Any
    teacher: Outputs


@checked
def taught(batch_at: Callable[[int], Any], teach: Teach) -> Callable[[int], TaughtBatch]:
    """Return a batch source whose batches hold the teacher's answers too.

    The teacher sees exactly what the student sees, augmentation included, in a computation of its own.

    Args:
      batch_at: ``batch_at(step)``, batches of `images`, `labels` and `mask`.
      teach: `teach` of a `Teacher`, or an `ensemble`.

    Example:
      >>> from lepton_jax.data import Batch
      >>> batch = Batch(jnp.ones((2, 3)), jnp.zeros(2, int), jnp.ones(2, bool))
      >>> taught(lambda step: batch, lambda images: Outputs(2 * images, {}))(0).teacher.logits.shape
      (2, 3)
    """

    def with_teacher(step: int) -> TaughtBatch:
        batch = batch_at(step)
        return TaughtBatch(batch.images, batch.labels, batch.mask, teach(batch.images))

    return with_teacher


def _cast(tree: PyTree, dtype: str) -> PyTree:
    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if paths.is_floating(leaf) and not is_packed(leaf) else leaf

    return jax.tree.map(cast, tree, is_leaf=is_packed)
