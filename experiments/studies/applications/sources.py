"""Where the examples of the tasks come from."""

import dataclasses
import os
from pathlib import Path

from experiments.common.config import Digits, Tfds
from lepton_jax.data import Dataset, load_fsdd, load_sst2

_FOLDER = Path(os.environ.get("TFDS_DATA_DIR", "data/tfds")).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sst2:
    """Sentences of film reviews; choices are made on its dev part."""

    folder: Path = _FOLDER / "sst2"
    """Holds train.tsv, dev.tsv and test.tsv; by default beside $TFDS_DATA_DIR, or data/sst2."""
    length: int = 40
    """Tokens a sentence."""
    tokens: int = 7000
    """How many there are; the model's vocabulary."""

    def load(self) -> Dataset:
        return load_sst2(self.folder, length=self.length, tokens=self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fsdd:
    """Spoken digits, as spectrograms."""

    path: Path = _FOLDER / "fsdd" / "fsdd.npz"
    """The archive; by default beside $TFDS_DATA_DIR, or data/fsdd/fsdd.npz."""

    def load(self) -> Dataset:
        return load_fsdd(self.path)


Source = Sst2 | Fsdd | Digits | Tfds
