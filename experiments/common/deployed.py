"""What a compressed network costs where it runs: numbers stored, multiplications, time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import account, save
from lepton_jax.core.packed import is_packed
from lepton_jax.core.paths import flatten
from lepton_jax.core.timing import ratio
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph import cost
from lepton_jax.native import packed
from lepton_jax.training import ModelApply

BATCHES = (1, 128)
"""Images a call whose time is measured."""


Network = tuple[ModelApply, PyTree]
"""A model and its variables."""


def deployed(dense: Network, apply: ModelApply, runs: Sequence[PyTree], images: np.ndarray, *, rounds: int) -> dict[str, Any]:
    """Return the costs of packed variables, in the common form of results.

    Args:
      dense: what times are compared with, not packed.
      apply: the model.
      runs: packed variables, a seed each; of the first only, times and what depends on shapes alone.
      images: some, to run it on.
      rounds: timed calls of each network.

    Returns:
      ``parameters``, numbers that are stored; ``nonzeros``, of these, by seed; ``macs``, multiplications of one image as the
      packed network runs, zeros included; ``latency_ratio``, time over that of the dense network, by batch.
    """
    counted = [
        cost(partial(logits, apply), variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)) for variables in runs
    ]
    stored = {path: _numbers(leaf) for path, leaf in flatten(runs[0], is_packed).items() if path.startswith("params/")}
    first = counted[0].parameters
    return {
        "parameters": sum(stored.values()),
        "nonzeros": [sum(one.parameters[path].nonzeros or 0 for path in stored) for one in counted],
        "macs": round(sum(first[path].macs * count / max(first[path].size, 1) for path, count in stored.items())),
        "nonzero_macs": [round(one.nonzero_macs) for one in counted],
        "latency_ratio": {str(batch): _ratio(dense, (apply, runs[0]), images, batch, rounds) for batch in BATCHES},
    }


def file_bytes(apply: ModelApply, variables: PyTree, images: np.ndarray, path: Path) -> int:
    """Save packed variables as a file, and count the bytes that are not its program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, partial(logits, apply), variables, jnp.asarray(images[:1]))
    counted = account(path)
    return counted.total - counted.program


def _numbers(leaf: Any) -> int:
    """Count the numbers of a leaf: of factors, theirs; of what is quantized, one a weight; of a sum, both parts'."""
    return leaf.numbers() if is_packed(leaf) else int(np.prod(leaf.shape))


def _ratio(dense: Network, small: Network, images: np.ndarray, batch: int, rounds: int) -> float:
    x = jnp.asarray(np.resize(images[:batch], (batch, *images.shape[1:])))
    return ratio(partial(_native, small[0], small[1], x), partial(_compiled, dense[0], dense[1], x), rounds=rounds)


@partial(jax.jit, static_argnums=0)
def _compiled(apply: ModelApply, variables: PyTree, images: Array) -> Array:
    return logits(apply, variables, images)


@partial(jax.jit, static_argnums=0)
def _native(apply: ModelApply, variables: PyTree, images: Array) -> Array:
    return packed(partial(logits, apply))(variables, images)


def logits(apply: ModelApply, variables: PyTree, images: Array) -> Array:
    """Return what a model answers in evaluation."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return apply(variables["params"], rest, images, train=False, key=None)[0]
