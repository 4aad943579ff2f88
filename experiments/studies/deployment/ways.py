"""What is done with a network before it is deployed."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.deployment.networks import Network
from lepton_jax import Model, Transform, factorize_model, identity, low_rank, pack
from lepton_jax.core.packed import is_packed
from lepton_jax.core.paths import flatten
from lepton_jax.core.typing import PyTree
from lepton_jax.formats import Uniform
from lepton_jax.pruning import channels
from lepton_jax.quantization import Gptq, quantize_layers
from lepton_jax.training import create, make_train_step

BATCH = 64
"""Inputs of a step, and of a batch that ranges are found on."""
_BLOCK = 16
RANK = 0.25
_LEAST = 0.8
"""Of the numbers: where multiples of 16 leave more, half of the channels go freely."""
WAYS: dict[str, tuple[str, bool]] = {
    "float": ("whole", False),
    "W8A8": ("whole", True),
    "W4A8": ("four_bits", True),
    "half the channels": ("half", False),
    "half the channels, W8A8": ("half", True),
    "low rank": ("thin", False),
    "low rank, W8A8": ("thin", True),
}
"""The form of the network, and whether weights and activations are placed in eight bits."""


def batches_of(inputs: np.ndarray, count: int | None = None) -> list[np.ndarray]:
    """Inputs in batches, so many at most."""
    starts = range(0, len(inputs), BATCH)
    return [inputs[start : start + BATCH] for start in starts][:count]


def whole(net: Network, steps: int) -> Model:
    """The network as it is."""
    return Model(net.apply, net.variables, (net.known[:1],))


def four_bits(net: Network, steps: int) -> Model:
    """Weights in four bits, a scale for each output, by GPTQ."""
    batches = batches_of(net.known, 8)
    found, _ = quantize_layers(net.apply, net.variables, batches, Uniform(4), Gptq(), progress=False)
    return Model(net.apply, found, (net.known[:1],))


def half(net: Network, steps: int) -> Model:
    """Half of the channels, in multiples of 16 where they can be; what is left learns from the whole network's outputs."""
    plan = partial(channels.plan, net.apply, net.variables, net.known[:1], fraction=0.5)
    try:
        made = plan(round_to=_BLOCK)
        small = made.shrink(net.variables)
    except ValueError:  # groups that are too small for it
        small = net.variables
    if _numbers(small) > _LEAST * _numbers(net.variables):
        made = plan()
        small = made.shrink(net.variables)
    apply, variables = made.rewrite(net.apply), jax.tree.map(jnp.asarray, small)
    return Model(apply, taught(net, apply, variables, identity(), steps), (net.known[:1],))


def _numbers(variables: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def thin(net: Network, steps: int) -> Model:
    """Weights as products of thin ones, of a quarter of their smaller side, that learn from the whole network's outputs."""
    rest = {name: tree for name, tree in net.variables.items() if name != "params"}
    alone = Model(lambda params, x: net.apply({"params": params, **rest}, x), net.variables["params"], (net.known[:1],))
    leaves = flatten(factorize_model(alone, RANK).variables, is_packed)
    ranks = {path: leaf.u.shape[-1] for path, leaf in leaves.items() if is_packed(leaf)}
    transform = low_rank(ranks, select=tuple(ranks))
    return Model(net.apply, taught(net, net.apply, net.variables, transform, steps), (net.known[:1],))


def taught(net: Network, apply: Any, variables: PyTree, transform: Transform, steps: int) -> PyTree:
    """The variables, packed, after learning from the network's outputs on inputs without labels; none where none are right."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, max(steps, 1)))
    state = create(variables["params"], rest, tx, transform, jax.random.key(0))

    def loss(params: PyTree, model_state: PyTree, batch: Any, key: Any) -> Any:
        inputs, wanted = batch
        given = apply({"params": params, **model_state}, inputs)
        return jnp.mean(jnp.square(given - wanted)) / jnp.mean(jnp.square(wanted)), (model_state, {})

    if net.labels is not None:
        answer, step = jax.jit(net.apply), make_train_step(loss, tx, transform)
        pairs = [(some, answer(net.variables, some)) for some in batches_of(net.known) if len(some) == BATCH]
        for number in range(steps if pairs else 0):
            state, _ = step(state, pairs[number % len(pairs)])
    return {"params": pack(transform, state.params, state.tstate), **rest}


def made(way: str, net: Network, steps: int, ready: dict[str, Model]) -> Model:
    """The network in the form of a way; from what is ready, where it is."""
    form, _ = WAYS[way]
    if form not in ready:
        ready[form] = {"whole": whole, "four_bits": four_bits, "half": half, "thin": thin}[form](net, steps)
    return ready[form]


def wrong(outputs: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The fraction of wrong classes; of tokens the perplexity.

    Example:
      >>> wrong([np.array([[1.0, 0.0], [0.0, 1.0]])], np.array([0, 0]))
      {'error': 0.5}
      >>> wrong([np.zeros((1, 2, 4))], np.zeros((1, 2), np.int32))
      {'perplexity': 4.0}
    """
    logits = np.concatenate([np.asarray(out, np.float64) for out in outputs])
    labels = labels[: len(logits)]
    if labels.ndim == 1:
        return {"error": float(np.mean(logits.argmax(-1) != labels))}
    logits = logits - logits.max(-1, keepdims=True)
    found = np.take_along_axis(logits, labels[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    return {"perplexity": round(float(np.exp(-found.mean())), 12)}
