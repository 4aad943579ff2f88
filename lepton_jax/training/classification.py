"""The loss of a classifier, for any model: Linen modules with or without batch norm, or plain functions."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.kinds import described
from lepton_jax.core.typing import Array, ModelApply, PyTree, Select
from lepton_jax.training.step import LossFn, Metrics


@checked
def linen_apply(module: Any) -> ModelApply:
    """Return a Linen module as a `ModelApply`.

    ``train`` is passed on if the module's ``__call__`` takes it. In training the collections of `model_state` are mutable
    (batch statistics), and the key serves the "dropout" stream.

    Args:
      module: a `flax.linen.Module`.

    Example:
      >>> from flax import linen as nn
      >>> module = nn.Dense(3)
      >>> variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> logits, model_state = linen_apply(module)(variables["params"], {}, jnp.ones((4, 2)), train=False, key=None)
      >>> logits.shape, model_state
      ((4, 3), {})
    """
    if not hasattr(module, "apply"):
        raise TypeError(f"linen_apply: module must be a flax.linen.Module; got {described(module)}.")
    takes_train = "train" in inspect.signature(type(module).__call__).parameters

    def apply(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        variables = {"params": params, **model_state}
        options: dict[str, Any] = {"train": train} if takes_train else {}
        if not train:
            return module.apply(variables, inputs, **options), model_state
        rngs = {} if key is None else {"dropout": key}
        if not model_state:
            return module.apply(variables, inputs, rngs=rngs, **options), model_state
        outputs, changed = module.apply(variables, inputs, rngs=rngs, mutable=list(model_state), **options)
        return outputs, {**model_state, **changed}

    return apply


@checked
def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Return each example's cross entropy with its integer label.

    ``-sum_c t_c log softmax(logits)_c`` with ``t = (1 - s) onehot(label) + s / C``, computed in float32.

    Args:
      logits: ``[..., C]``.
      labels: integers ``[...]``.
      label_smoothing: s in [0, 1).

    Returns:
      float32 ``[...]``.

    Example:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), label_smoothing=0.1)
      Array([1.3862944], dtype=float32)
    """
    if logits.shape[:-1] != labels.shape or not logits.ndim:
        raise ValueError(f"cross_entropy: needs logits [..., C] and labels [...]; got {logits.shape} and {labels.shape}.")
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss


@checked
def classification_loss(
    apply: ModelApply, *, l2: float = 0.0, l2_select: Select = paths.matrices, label_smoothing: float = 0.0
) -> LossFn:
    """Make the loss function of a classifier for `make_train_step`.

    ``mean(cross_entropy) + l2 / 2 * sum(w**2)`` over the selected leaves as the model sees them.

    Args:
      apply: the model, e.g. ``linen_apply(module)``.
      l2: weight of the penalty, 0 or more.
      l2_select: which leaves it is on.
      label_smoothing: in [0, 1).

    Returns:
      A `LossFn`; batches have `images` and `labels`. Its metrics: "error", the fraction of wrong answers.

    Raises:
      ValueError: for settings out of range.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.data import Batch
      >>> loss_fn = classification_loss(linen_apply(nn.Dense(2)), l2=1e-4)
      >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool))
      >>> loss, (_, metrics) = loss_fn({"kernel": jnp.eye(2), "bias": jnp.zeros(2)}, {}, batch, jax.random.key(0))
      >>> metrics["error"].item()
      0.0
    """
    check_fraction("label_smoothing", label_smoothing)
    if not l2 >= 0:
        raise ValueError(f"classification_loss: l2 must be 0 or more; got {l2}.")

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        logits, model_state = apply(params, model_state, batch.images, train=True, key=key)
        loss = jnp.mean(cross_entropy(logits, batch.labels, label_smoothing=label_smoothing))
        if l2:
            loss += l2 / 2 * sum(jnp.sum(jnp.square(leaf)) for leaf in paths.select(params, l2_select).values())
        return loss, (model_state, {"error": jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)})

    return loss_fn
