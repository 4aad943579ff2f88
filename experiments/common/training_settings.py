"""What every study of many small runs has in common."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import tyro
from flax import linen as nn

from experiments.common.config import Checked
from experiments.common.sources import Data
from lepton_jax.data import Dataset, steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """Data, model and loop."""

    name: str
    """Names the run folder."""
    data: Data
    """Where the examples come from."""
    model: Annotated[nn.Module, tyro.conf.Suppress]
    """The network."""
    epochs: int
    """Passes over the training set, the same for every run that is compared."""
    batch_size: int = 128
    """Examples a step."""
    scan: bool = True
    """Take all steps of an epoch in one program; not for convolutions on CPU."""
    vmap: int = 1
    """Runs side by side in that program; 1: one after another, which is faster on CPU."""
    seed: int = 0
    """The first seed: of initialisation, order and masks."""
    max_steps: int | None = None
    """Stop every run after so many steps, for a trial run."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "epochs", "batch_size", "vmap", "max_steps")
        yield from self.at_least(0, "seed")

    def steps(self, dataset: Dataset, epochs: int) -> int:
        """Return how many steps so many epochs have, or a trial run instead."""
        whole = epochs * steps_per_epoch(dataset.train, self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)
