"""What an experiment is, as data: frozen dataclasses that are checked when they are made.

A config file defines ``get_config() -> Config`` and may define ``sweep() -> dict[str, Config]``, the rows of an ablation by
name. A new experiment is one such file.
"""

import dataclasses
import difflib
import importlib.util
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import optax
import tyro
from flax import linen as nn

from experiments.common import resnet20
from experiments.common.methods import Method
from lepton_jax.core.errors import collect
from lepton_jax.core.kinds import described, fields_of
from lepton_jax.data import (
    Dataset,
    Warp,
    from_arrays,
    load_digits,
    load_fsdd,
    load_sst2,
    load_tfds,
)
from lepton_jax.pruning.sparse_training import scale_by_adam_by_weight


class Checked:
    """Settings that say all that is wrong with them when they are made."""

    name: str

    def __post_init__(self) -> None:
        with collect(f"{type(self).__name__} {self.name!r}") as problems:
            # What a study and its training say alike is said once.
            problems.extend(dict.fromkeys(self.wrong_types() or self.problems()))

    def wrong_types(self) -> list[str]:
        """Say which fields are not what they are declared to be; nothing else can be said of these."""
        given = [(name, kind, getattr(self, name)) for name, kind in fields_of(type(self)).items()]
        return [f"{name}: must be {kind.words}; got {said}" for name, kind, value in given if (said := kind.wrong(value))]

    def problems(self) -> Iterator[str]:
        """Say what is wrong; a class that inherits says its own after ``yield from super().problems()``."""
        yield from ()

    def at_least(self, least: int, *fields: str) -> Iterator[str]:
        """Say which fields are less; None is nothing to compare."""
        for field in fields:
            value = getattr(self, field)
            if value is not None and not value >= least:
                yield f"{field}: must be at least {least}; got {value}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """Scikit-learn's handwritten digits, 8 x 8 pixels; embedded, no download."""

    validation: int = 180
    """Examples held out for choices."""

    def load(self) -> Dataset:
        return load_digits(validation=self.validation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
    """A prepared image set of TensorFlow Datasets, read without TensorFlow."""

    name: str
    """As TFDS names it, e.g. mnist."""
    validation: int = 5000
    """Examples of the training part held out for choices."""
    data_dir: str | None = None
    """Where it is prepared; by default $TFDS_DATA_DIR, or TFDS's own folder."""

    def load(self) -> Dataset:
        return load_tfds(self.name, validation=self.validation, data_dir=self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cifar10:
    """Lossless CIFAR-10 images for figures; for training these and JPEG-compressed ones; all standardised."""

    folder: Path = resnet20.FOLDER
    """Holds `cifar10_subset/` and `cifar10_jpeg/`."""
    jpeg: int = 8000
    """Compressed training images beside the 4,000 lossless ones; 0: none."""
    validation: int = 1000
    """Of both, held out for choices."""

    def load(self) -> Dataset:
        train, test = resnet20.lossless_splits(self.folder)
        parts = [train, *([resnet20.jpeg_split(self.folder, self.jpeg, 0)] if self.jpeg else [])]
        images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        made = (images, labels), (test.images, test.labels)
        return from_arrays(*made, num_classes=10, validation=self.validation, name="cifar10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sst2:
    """Sentences of film reviews; choices are made on its dev part."""

    folder: Path = resnet20.FOLDER / "sst2"
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

    path: Path = resnet20.FOLDER / "fsdd" / "fsdd.npz"
    """The archive; by default beside $TFDS_DATA_DIR, or data/fsdd/fsdd.npz."""

    def load(self) -> Dataset:
        return load_fsdd(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with a rate that falls to a hundredth along a cosine over the phase."""

    learning_rate: float = 1e-3
    by_weight: bool = False
    """Whether bias corrections count each weight's own steps; for weights that grow in the course of training."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"Adam: learning_rate must be positive; got {self.learning_rate}.")

    def build(self, steps: int) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(self.learning_rate, steps, alpha=0.01)
        if self.by_weight:
            return optax.chain(scale_by_adam_by_weight(), optax.scale_by_learning_rate(rate))
        return optax.adam(rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum:
    """Gradient descent with momentum; its rate falls to a hundredth along a cosine."""

    learning_rate: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        with collect("Momentum") as problems:
            if not self.learning_rate > 0:
                problems.append(f"learning_rate: must be positive; got {self.learning_rate}")
            if not 0 <= self.momentum < 1:
                problems.append(f"momentum: must be in [0, 1); got {self.momentum}")

    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.sgd(optax.cosine_decay_schedule(self.learning_rate, steps, alpha=0.01), self.momentum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase(Checked):
    """One stretch of training, under the views of all phases before it (frozen) and its own."""

    name: str
    """The phase's row in the table."""
    epochs: int
    """Passes over the training set."""
    optimizer: Adam = Adam()
    """Made anew for the phase."""
    transforms: tuple[Method, ...] = ()
    """What this phase adds to the view."""
    l2: float = 0.0
    """Weight of half the sum of squares of the parameters as the model sees them."""

    def problems(self) -> Iterator[str]:
        yield from self.at_least(1, "epochs")
        yield from self.at_least(0, "l2")
        if not self.name.isidentifier():
            yield "name: must be a word, since it names files"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """An experiment: data, model, and phases of training."""

    name: str
    """Names the run folder."""
    data: Digits | Tfds
    """Where the examples come from."""
    model: Annotated[nn.Module, tyro.conf.Suppress]
    """The network."""
    phases: tuple[Phase, ...]
    """In order; the first is the dense reference that everything is compared with."""
    batch_size: int = 128
    """Examples a step."""
    warp: Annotated[Warp | None, tyro.conf.Suppress] = None
    """Augmentation of the training images; None: none."""
    scan: int = 1
    """Steps a dispatch: more for small dense models, 1 for convolutions."""
    seed: int = 0
    """Of initialisation, order and augmentation."""
    max_steps: int | None = None
    """Stop every phase after so many steps, for a trial run."""
    reference: Annotated[str, tyro.conf.Suppress] = ""
    """A paper's figures, to stand beside the last phase's."""
    source: Annotated[str, tyro.conf.Suppress] = ""
    """The paper."""

    def problems(self) -> Iterator[str]:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            yield f"phases: at least one, each with a name of its own; got {names}"
        yield from self.at_least(1, "batch_size", "scan", "max_steps")
        yield from self.at_least(0, "seed")
        if self.phases and self.phases[0].transforms:
            yield "phases: the first is the dense reference and has no transforms"


Kind = TypeVar("Kind")


def load_config(path: str | Path, kind: type[Kind] = Config) -> Kind:  # type: ignore[assignment]
    """Return a file's ``get_config()``.

    Args:
      path: of the config file.
      kind: the class it has to be of, which depends on the script.

    Raises:
      ValueError: if the file is not there, cannot be run or lacks the function.
      TypeError: if it returns something else.
    """
    module = _module(path)
    if not callable(module.get_config):
        said = described(module.get_config)
        raise TypeError(f"{path}: get_config must be a function, `def get_config():`, that returns the config; got {said}.")
    with _located(path):
        config = module.get_config()
    if not isinstance(config, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise TypeError(f"{path}: get_config() must return an {wanted}; it returned {type(config).__name__}.")
    return config


def load_sweep(path: str | Path) -> Mapping[str, Config]:
    """Return a file's ``sweep()``, rows by name; without one, the config alone."""
    module = _module(path)
    with _located(path):
        rows = module.sweep() if hasattr(module, "sweep") else {"default": load_config(path)}
    wrong = [name for name, row in rows.items() if not isinstance(row, Config)]
    if wrong:
        raise TypeError(f"{path}: sweep() must return Configs by name; these rows are not: {', '.join(wrong)}.")
    return rows


def _module(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        shown = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ValueError(f"there is no config file {path}. In {path.parent} there are: {', '.join(shown) or 'none'}.")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _located(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} must define get_config(), which returns an experiments.common.config.Config.")
    return module


@contextmanager
def _located(path: str | Path) -> Iterator[None]:
    """Say in which config file an error of its code arose."""
    try:
        yield
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (NameError, AttributeError, ImportError) as error:
        raise ValueError(f"{path}: {error}") from error
    except TypeError as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise TypeError(f"{path}, line {lines[-1]}: {error}{_meant(str(error))}" if lines else str(error)) from error


def _meant(error: str) -> str:
    """After an error of an unknown field: the one nearest to it, and all there are; else nothing."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", error)
    kinds = [kind for kind in _below(Checked) if found and kind.__name__ == found[1] and dataclasses.is_dataclass(kind)]
    if found is None or not kinds:
        return ""
    fields = [field.name for field in dataclasses.fields(kinds[0])]
    near = difflib.get_close_matches(found[2], fields, 1)
    return f". {f'Did you mean {near[0]}? ' if near else ''}{found[1]} has {', '.join(fields)}."


def _below(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def to_json(value: Any) -> Any:
    """Return a config as JSON-able data: dataclasses as objects with their type, everything else as text."""
    if isinstance(value, nn.Module):
        return _text(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else _text(value)


def _text(value: Any) -> str:
    """The `repr` on one line, without the addresses of functions, which are others in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).replace("\n", " ")
