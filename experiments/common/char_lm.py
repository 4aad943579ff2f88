"""A character language model: trained once for each seed, kept in a folder, measured by its perplexity.

Text is cut in three: the first 90 % to train on, then 5 % for choices, then 5 % for the figures. Perplexity is per character.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import unfinished
from experiments.common.config import to_json
from lepton_jax import identity
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange import load_npz, save_npz
from lepton_jax.models import Transformer
from lepton_jax.training import (
    FitSettings,
    batch_source,
    create,
    make_train_step,
    next_token_entropy,
    next_token_loss,
    windows,
)

Apply = Callable[..., Any]
"""``(variables, tokens[B, L]) -> logits[B, L, vocabulary]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharLM:
    """A transformer on characters, and how it is trained."""

    depth: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    length: int = 128
    """Characters that a prediction may look at."""
    batch_size: int = 16
    """Windows a step."""
    steps: int = 1500
    learning_rate: float = 3e-3
    """At its peak: it rises over a tenth of the steps and falls along a cosine."""
    weight_decay: float = 0.1
    """Of what has two axes or more."""

    def __post_init__(self) -> None:
        with collect("CharLM") as problems:
            for field in ("depth", "width", "heads", "mlp", "length", "batch_size", "steps"):
                if getattr(self, field) < 1:
                    problems.append(f"{field}: must be at least 1; got {getattr(self, field)}")
            if not self.learning_rate > 0:
                problems.append(f"learning_rate: must be positive; got {self.learning_rate}")

    def model(self, vocabulary: int) -> Transformer:
        """Return the module."""
        return Transformer(
            vocabulary=vocabulary,
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            mlp=self.mlp,
            max_length=self.length,
        )

    def optimizer(self, steps: int | None = None, learning_rate: float | None = None) -> optax.GradientTransformation:
        """Return the optimiser of a run, or of a tuning of other length and rate."""
        steps, peak = steps or self.steps, learning_rate or self.learning_rate
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 10, 1), max(steps, 2), 0.01 * peak)
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=self.weight_decay, mask=_decayed)
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text as numbers, in three parts."""

    characters: str
    """The vocabulary: token k is ``characters[k]``."""
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load_text(path: str | os.PathLike[str]) -> Text:
    """Read a text file.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "text"
      >>> file.write_text("abba" * 10)
      40
      >>> text = load_text(file)
      >>> text.characters, text.train[:4].tolist(), len(text.train), len(text.validation), len(text.test)
      ('ab', [0, 1, 1, 0], 36, 2, 2)
    """
    written = Path(path).read_text(encoding="utf-8")
    characters = "".join(sorted(set(written)))
    numbers = {character: number for number, character in enumerate(characters)}
    tokens = np.array([numbers[character] for character in written], np.int32)
    first, second = len(tokens) * 90 // 100, len(tokens) * 95 // 100
    return Text(characters=characters, train=tokens[:first], validation=tokens[first:second], test=tokens[second:])


def batches(tokens: np.ndarray, config: CharLM, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield windows ``[batch_size, length + 1]`` that begin anywhere, from a step on."""
    rng = np.random.default_rng(seed)
    span = np.arange(config.length + 1)
    for step in count():
        begins = rng.integers(0, len(tokens) - config.length, (config.batch_size, 1))
        if step >= start:
            yield tokens[begins + span[None]]


def batches_by_step(tokens: np.ndarray, config: CharLM, seed: int) -> Callable[[int], np.ndarray]:
    """Return `batches` by step."""
    return batch_source(lambda start: batches(tokens, config, seed, start))


def settings(steps: int) -> FitSettings:
    """Return how a training of so many steps runs: after any of them there may be a checkpoint."""
    return FitSettings(steps=steps, checkpoint_every=1)


def train(seed: int, config: CharLM, text: Text, folder: str | os.PathLike[str]) -> PyTree:
    """Return trained variables ``{"params": ...}``; from the folder, where the same run is there already.

    Args:
      seed: of the initial weights and of the batches.
      config: model and training.
      text: from `load_text`.
      folder: keeps one file for each seed, config and text, and the checkpoint of a training that was interrupted.
    """
    name = f"char_lm-{_fingerprint(config, text)}-seed{seed}"
    path = Path(folder) / f"{name}.npz"
    if path.exists():
        return jax.tree.map(jnp.asarray, load_npz(path))
    model = config.model(len(text.characters))
    params = model.init(jax.random.key(seed), jnp.zeros((1, config.length), jnp.int32))["params"]
    tx, plain = config.optimizer(), identity()
    step = make_train_step(next_token_loss(model.apply), tx, plain)
    state = create(params, {}, tx, plain, jax.random.key(seed))
    args = (state, step, batches_by_step(text.train, config, seed), settings(config.steps))
    state = unfinished.train(*args, name=name, seeds=[seed], run_dir=Path(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, {"params": state.params})
    unfinished.remove(Path(folder), name)
    return {"params": state.params}


def _decayed(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _fingerprint(config: CharLM, text: Text) -> str:
    settings = json.dumps(to_json(config), sort_keys=True).encode()
    return hashlib.sha256(settings + text.characters.encode() + text.train.tobytes()).hexdigest()[:12]


def cross_entropy_of(apply: Apply, variables: PyTree, tokens: np.ndarray, length: int, *, batch_size: int = 32) -> float:
    """Return the mean cross entropy, in nats a character, over all whole windows of a part of the text.

    Args:
      apply: as the model's own; under `lepton_jax.native.interpreter` the variables may have packed leaves.
      variables: of the model.
      tokens: e.g. ``text.test``.
      length: of the windows; a character is predicted from those before it in its own window.
      batch_size: windows a call.
    """
    return next_token_entropy(apply, variables, windows(tokens, length), batch_size=batch_size)


def perplexity(apply: Apply, variables: PyTree, tokens: np.ndarray, length: int, *, batch_size: int = 32) -> float:
    """Return ``exp`` of the mean cross entropy a character; arguments as those of `cross_entropy_of`."""
    return float(np.exp(cross_entropy_of(apply, variables, tokens, length, batch_size=batch_size)))
