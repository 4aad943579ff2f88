"""The sets of the applications, as configs; and all kinds of sets together."""

import dataclasses
from pathlib import Path

from experiments.common import resnet20
from experiments.common.config import Cifar10, Digits, Fsdd, Sst2, Tfds
from lepton_jax.data import (
    Dataset,
    load_av_digits,
    load_banking77,
    load_bccd,
    load_emoji,
    load_nab,
    load_online_retail,
    load_pneumonia,
    load_sentfin,
    load_tatoeba,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Banking77:
    """Questions of a bank's customers, with their intents."""

    folder: Path = resnet20.FOLDER / "banking77"
    """Holds train.tsv, val.tsv, test.tsv and labels.txt."""
    tokens: int = 32768
    """How many there are; the model's vocabulary."""

    def load(self) -> Dataset:
        return load_banking77(self.folder, tokens=self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentfin:
    """Headlines of financial news, with the sentiment towards an entity."""

    folder: Path = resnet20.FOLDER / "sentfin"
    """Holds train.tsv, val.tsv and test.tsv."""
    tokens: int = 65536
    """How many there are; the model's vocabulary."""

    def load(self) -> Dataset:
        return load_sentfin(self.folder, tokens=self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pneumonia:
    """X-ray images of chests."""

    path: Path = resnet20.FOLDER / "pneumonia" / "pneumonia.npz"
    """The archive."""

    def load(self) -> Dataset:
        return load_pneumonia(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nab:
    """Time series with anomalies."""

    path: Path = resnet20.FOLDER / "nab" / "nab.npz"
    """The archive."""
    window: int = 96
    """Points of a window."""

    def load(self) -> Dataset:
        return load_nab(self.path, window=self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvDigits:
    """Digits written and spoken."""

    path: Path = resnet20.FOLDER / "av_digits" / "av_digits.npz"
    """The archive of the pairs."""
    sounds: Path = resnet20.FOLDER / "fsdd" / "fsdd.npz"
    """The archive of the clips."""

    def load(self) -> Dataset:
        return load_av_digits(self.path, self.sounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji:
    """Drawings with their names."""

    path: Path = resnet20.FOLDER / "emoji" / "emoji.npz"
    """The archive."""
    tokens: int = 4096
    """How many there are; the model's vocabulary."""

    def load(self) -> Dataset:
        return load_emoji(self.path, tokens=self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineRetail:
    """What customers of a shop bought."""

    path: Path = resnet20.FOLDER / "online_retail" / "online_retail.npz"
    """The archive."""
    basket: int = 32
    """Products of the same day that are shown, before those of earlier days."""
    examples: int = 24
    """Of training, a customer."""

    def load(self) -> Dataset:
        return load_online_retail(self.path, basket=self.basket, examples=self.examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bccd:
    """Photos of blood smears, with boxes around the cells."""

    path: Path = resnet20.FOLDER / "bccd" / "bccd.npz"
    """The archive."""
    height: int = 240
    """That photos are brought to."""
    width: int = 320
    """That photos are brought to."""

    def load(self) -> Dataset:
        return load_bccd(self.path, height=self.height, width=self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tatoeba:
    """Sentences in English and German."""

    folder: Path = resnet20.FOLDER / "tatoeba_en_de"
    """Holds train.tsv.gz, val.tsv.gz and test.tsv.gz."""
    tokens: int = 4000
    """How many there are; the model's vocabulary."""

    def load(self) -> Dataset:
        return load_tatoeba(self.folder, tokens=self.tokens)


Data = (
    Bccd
    | Digits
    | Tfds
    | Cifar10
    | Sst2
    | Fsdd
    | Banking77
    | Sentfin
    | Pneumonia
    | Nab
    | AvDigits
    | Emoji
    | OnlineRetail
    | Tatoeba
)
"""All kinds of sets."""
