"""Deep mutual learning: peers that train together, each on the labels and on the others' answers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.distillation.labels import Labelled, on_labels
from lepton_jax.distillation.logits import soft_targets
from lepton_jax.distillation.numerics import check_temperature, check_weights
from lepton_jax.distillation.taps import tapped
from lepton_jax.training.classification import classification_loss
from lepton_jax.training.step import LossFn, Metrics


@checked
def mutual_loss(
    peers: Mapping[str, ModelApply],
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    labelled: Labelled = classification_loss,
) -> LossFn:
    """Make the joint loss function of several students for `make_train_step`.

    ``sum_i [loss on the labels_i + weight * mean_{j != i} T**2 KL(p_j || p_i)]``; no gradient goes through p_j in peer i's
    term. Parameters and model state are ``{name: ...}``, batches are ordinary ones; `part` takes a peer out, `by_part` puts a
    transform on each.

    Args:
      peers: the models by name, two or more.
      temperature: T > 0.
      weight: of the others' answers, 0 or more.
      labelled: makes the loss on the labels of a model.

    Returns:
      A `LossFn`; its metrics, for each peer: those of the loss on the labels as ``{name}_...``, and ``{name}_mutual``.

    Raises:
      ValueError: for fewer than two peers, or settings out of range.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.data import Batch
      >>> from lepton_jax.training import linen_apply
      >>> loss_fn = mutual_loss({"a": linen_apply(nn.Dense(2)), "b": linen_apply(nn.Dense(2))})
      >>> params = {name: {"kernel": jnp.eye(2), "bias": jnp.zeros(2)} for name in "ab"}
      >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool))
      >>> loss, (_, metrics) = loss_fn(params, {"a": {}, "b": {}}, batch, jax.random.key(0))
      >>> metrics["a_mutual"].item(), metrics["b_error"].item()
      (0.0, 0.0)

    Source: Y. Zhang et al. 2018, "Deep mutual learning", section 3. Deviation: all peers step at once on the same answers,
    where the paper's algorithm 1 takes turns.
    """
    check_temperature("mutual_loss", temperature)
    if len(peers) < 2:
        raise ValueError(f"mutual_loss: needs two peers or more; got {', '.join(peers) or 'none'}.")
    check_weights("mutual_loss", weight=weight)

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        logits: dict[str, Array] = {}
        states: dict[str, PyTree] = {}
        metrics: Metrics = {}
        total = jnp.float32(0)
        for number, (name, apply) in enumerate(peers.items()):
            run, own_key = tapped(apply, ()), jax.random.fold_in(key, number)
            loss, outputs, states[name], own = on_labels(labelled, run, params[name], model_state[name], batch, own_key)
            logits[name] = outputs.logits
            metrics |= {f"{name}_{metric}": value for metric, value in own.items()}
            total += loss
        for name in peers:
            others = [jax.lax.stop_gradient(logits[other]) for other in peers if other != name]
            losses = [jnp.mean(soft_targets(logits[name], other, temperature)) for other in others]
            metrics[f"{name}_mutual"] = jnp.mean(jnp.stack(losses))
            total += weight * metrics[f"{name}_mutual"]
        return total, (states, metrics)

    return loss_fn
