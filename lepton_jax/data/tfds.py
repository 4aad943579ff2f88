"""Any image classification set that TFDS has prepared, read without TensorFlow and decoded once."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra
from lepton_jax.data.cache import cache_folder, read_arrays, write_arrays
from lepton_jax.data.dataset import Dataset
from lepton_jax.data.split import from_arrays

_Folder = str | os.PathLike[str] | None


@checked
def load_tfds(
    name: str,
    *,
    validation: int,
    train_split: str = "train",
    test_split: str = "test",
    image_key: str = "image",
    label_key: str = "label",
    data_dir: _Folder = None,
    cache_dir: _Folder = None,
    progress: bool = True,
) -> Dataset:
    """Load an image classification set prepared by TFDS as `array_record`.

    The records are read with `tfds.data_source` through `grain`, decoded once (a few thousand images a second) and kept as
    arrays in the cache, one file for each name, version and split. Nothing is ever downloaded here.

    Args:
      name: a TFDS name, ``'mnist'`` or ``'mnist:3.0.1'``; the images must all have one shape.
      validation: how many training examples to set aside for choices, stratified and always the same; 0 for final runs.
      train_split: the TFDS split to train on (a name or a slice such as ``'train[:90%]'``).
      test_split: the TFDS split for the final figure.
      image_key: the feature that holds the image.
      label_key: the feature that holds the class.
      data_dir: where TFDS keeps its sets; by default the variable TFDS_DATA_DIR, else TFDS's own default.
      cache_dir: where decoded arrays are kept; by default the variable LEPTON_CACHE, else ``~/.cache/lepton_jax``.
      progress: show a bar while decoding.

    Returns:
      Images float32 ``[N, H, W, C]`` in [0, 1] and int32 labels. They are held in memory: a set larger than that needs
      `grain` and batches of its own.

    Raises:
      ValueError: if TFDS knows no such set, or it is no image classification set of one shape.
      FileNotFoundError: if the set is not prepared on this machine; the message says how to get it.

    Example:
      >>> load_tfds("mnist", validation=0, data_dir="nowhere", cache_dir="nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...pip install 'lepton-jax[tfds]'...
    """
    builder = _builder(name, data_dir)
    features = _check_features(builder, image_key, label_key)
    parts = []
    for split in (train_split, test_split):
        cached = cache_folder(cache_dir) / "tfds" / f"{builder.name}-{builder.version}" / f"{_file_stem(split, builder)}.npz"
        parts.append(_cached(builder, split, (image_key, label_key), cached, progress))
    return from_arrays(*parts, num_classes=features[label_key].num_classes, validation=validation, name=builder.name)


@checked
def load_mnist(
    *, validation: int = 5000, data_dir: _Folder = None, cache_dir: _Folder = None, progress: bool = True
) -> Dataset:
    """Load MNIST: 60,000 and 10,000 images ``[28, 28, 1]``, float32 in [0, 1].

    Args:
      validation: how many of the 60,000 to set aside for choices, stratified and always the same; 0 for final runs.
      data_dir: as in `load_tfds`.
      cache_dir: as in `load_tfds`.
      progress: as in `load_tfds`.

    Raises:
      FileNotFoundError: if TFDS has not prepared it; the message says how.

    Example:
      >>> load_mnist(data_dir="nowhere", cache_dir="nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...pip install 'lepton-jax[tfds]'...

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits, 1998.
    """
    return load_tfds("mnist", validation=validation, data_dir=data_dir, cache_dir=cache_dir, progress=progress)


@checked
def load_fashion_mnist(
    *, validation: int = 5000, data_dir: _Folder = None, cache_dir: _Folder = None, progress: bool = True
) -> Dataset:
    """Load Fashion-MNIST: 60,000 and 10,000 images of clothes ``[28, 28, 1]``, float32 in [0, 1].

    Args:
      validation: how many of the 60,000 to set aside for choices, stratified and always the same; 0 for final runs.
      data_dir: as in `load_tfds`.
      cache_dir: as in `load_tfds`.
      progress: as in `load_tfds`.

    Raises:
      FileNotFoundError: if TFDS has not prepared it; the message says how.

    Example:
      >>> load_fashion_mnist(data_dir="nowhere", cache_dir="nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...pip install 'lepton-jax[tfds]'...

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017.
    """
    return load_tfds("fashion_mnist", validation=validation, data_dir=data_dir, cache_dir=cache_dir, progress=progress)


def _builder(name: str, data_dir: _Folder) -> Any:
    tfds = import_extra("tensorflow_datasets", "data")  # slow to import, and digits need none of it

    folder = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        return tfds.builder(name, data_dir=None if folder is None else Path(folder), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"TFDS knows no set called {name!r}. `tfds.list_builders()` lists the names.") from error


def _check_features(builder: Any, image_key: str, label_key: str) -> Any:
    features = builder.info.features
    named = dict(features.items()) if hasattr(features, "items") else {}
    image = named.get(image_key)
    classes = getattr(named.get(label_key), "num_classes", None)
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape or not classes:
        raise ValueError(
            f"{builder.name}: needs a feature {image_key!r} that is a uint8 image of one fixed shape and a feature "
            f"{label_key!r} that is a class; it has {features}. Name the features in image_key and label_key; for "
            "images of several sizes, resize them yourself and use `from_arrays`."
        )
    return features


def _cached(builder: Any, split: str, keys: tuple[str, str], path: Path, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_arrays(path, keys)
    # The set itself need not be here once it is cached; where it is, a cache of another length is not of this set.
    stale = arrays is not None and builder.is_prepared() and len(arrays[keys[1]]) != builder.info.splits[split].num_examples
    if arrays is None or stale:
        arrays = _decode(builder, split, keys, progress)
        write_arrays(path, arrays)
    return arrays[keys[0]], arrays[keys[1]]


def _decode(builder: Any, split: str, keys: tuple[str, str], progress: bool) -> dict[str, np.ndarray]:
    grain = import_extra("grain", "data")
    image_key, label_key = keys
    chunks = _Chunks(_source(builder, split))
    total = len(chunks.source)
    images = np.empty((total, *builder.info.features[image_key].shape), np.uint8)
    labels = np.empty(total, np.int32)
    done = 0
    reader = grain.MapDataset.source(chunks).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    with tqdm(total=total, desc=f"decoding {builder.name}/{split}", unit=" images", disable=not progress) as bar:
        for records in reader:
            for record in records:
                images[done], labels[done] = record[image_key], record[label_key]
                done += 1
            bar.update(len(records))
    return {image_key: images, label_key: labels}


def _source(builder: Any, split: str) -> Any:
    if not builder.is_prepared():
        raise FileNotFoundError(_how_to_get(builder))
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:  # what TFDS raises where the set lies there in another file format
        raise FileNotFoundError(_how_to_get(builder)) from error


class _Chunks:
    """A source whose item is a list of records: reading them together is about three times as fast as one by one."""

    size = 256

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return -(-len(self.source) // self.size)

    def __getitem__(self, index: int) -> list[Any]:
        return list(self.source.__getitems__(range(index * self.size, min((index + 1) * self.size, len(self.source)))))


def _file_stem(split: str, builder: Any) -> str:
    config = f"{builder.builder_config.name}-" if builder.builder_config else ""
    return config + quote(split, safe="")


def _how_to_get(builder: Any) -> str:
    folder = Path(builder.data_dir)
    root = folder.parents[len(Path(builder.info.full_name).parts) - 1]
    return (
        f"{builder.info.full_name} is not prepared as array_record in {root}. Either point TFDS_DATA_DIR (or data_dir) to the "
        "folder that holds it, or download it once, with network:\n"
        "  pip install 'lepton-jax[tfds]'\n"
        f'  python -c "import tensorflow_datasets as tfds; tfds.builder({builder.name!r}, data_dir={str(root)!r}, '
        "file_format='array_record').download_and_prepare(file_format='array_record')\""
    )
