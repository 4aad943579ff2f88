"""Random scores, the baseline."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance


@checked
@dataclass(frozen=True, kw_only=True)
class Random(Importance):
    """Score channels at random, alike for the same key and paths.

    Args:
      key: a random key.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> scores = Random(key=jax.random.key(0)).scores({"kernel": np.zeros((3, 2))}, [group])
      >>> scores["kernel", 1].shape
      (2,)
    """

    key: Array

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        found = {}
        seed = int(np.ravel(jax.random.bits(self.key))[0])
        for group in groups:
            # One axis speaks for the channel: a mean over many would be less random.
            first = group.slices[0]
            own = np.random.default_rng([seed, zlib.crc32(f"{first.path}[{first.axis}]".encode())])
            found[first.place] = own.random(variables[first.path].shape[first.axis])
        return found
