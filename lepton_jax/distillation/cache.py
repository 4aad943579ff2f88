"""A teacher's outputs on a fixed split, computed once and read from disk afterwards."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.files import folder_in_the_making, write_json
from lepton_jax.data import Split, batches, eval_batches
from lepton_jax.distillation.taps import Outputs
from lepton_jax.distillation.teacher import TaughtBatch, Teach, Teacher, teach
from lepton_jax.training.arrays import describe, to_arrays

_ABOUT = "about.json"
_VERSION = 1
_TOLERANCE = 0.02


@checked
def cache_outputs(
    teacher: Teacher,
    split: Split,
    path: str | os.PathLike[str],
    *,
    taps: tuple[str, ...] = (),
    batch_size: int = 500,
    progress: bool = True,
) -> Outputs:
    """Return the teacher's outputs on a split, from `path` if they are there, else computed and written there.

    For training without augmentation, which would show the teacher other inputs every epoch. The folder holds one ``.npy``
    file an array, memory-mapped, and a JSON file with hashes of every weight and of the images. It appears only once it
    is complete.

    Args:
      teacher: the model.
      split: its images, in order.
      path: a folder.
      taps: patterns of features to keep too, normally `Distill.teacher_taps`.
      batch_size: examples at a time, 1 or more.
      progress: show a bar, if the error stream is a terminal.

    Returns:
      Memory-mapped arrays of N rows; bfloat16 values are kept as float32, exactly.

    Raises:
      ValueError: if what is there is of another teacher, other images, other taps or another precision (the message says
        what changed), if it is damaged, or if it is no cache.

    Example:
      >>> import tempfile
      >>> from flax import linen as nn
      >>> from lepton_jax.training import linen_apply
      >>> split = Split(images=np.ones((3, 1, 1, 2), np.float32), labels=np.zeros(3, np.int32))
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)}
      >>> teacher = Teacher(apply=linen_apply(nn.Dense(4)), params=params)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     outputs = cache_outputs(teacher, split, Path(folder) / "cache", progress=False)
      ...     outputs.logits.shape, type(outputs.logits).__name__
      ((3, 1, 1, 4), 'memmap')
    """
    folder, run = Path(path), teach(teacher, tuple(taps))
    if not len(split):
        raise ValueError("cache_outputs: the split has no examples; give it some.")
    key = _key(teacher, split, tuple(taps))
    if not folder.exists():
        _write(folder, key, run, split, batch_size, progress)
    return _read(folder, key, run, split, batch_size)


@checked
def cached_batches(split: Split, outputs: Outputs, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[TaughtBatch]:
    """Yield the batches that `lepton_jax.data.batches` yields, each with the teacher's rows out of a cache.

    Args:
      split: the examples that were cached.
      outputs: of `cache_outputs`.
      batch_size: B.
      seed: of the run.
      start_step: where to begin.

    Raises:
      ValueError: if the outputs are of another number of examples.

    Example:
      >>> split = Split(images=np.zeros((4, 1, 1, 1), np.float32), labels=np.arange(4, dtype=np.int32))
      >>> outputs = Outputs(np.arange(4.0)[:, None], {})
      >>> batch = next(cached_batches(split, outputs, 2, seed=0))
      >>> batch.teacher.logits[:, 0].tolist() == batch.labels.tolist()
      True
    """
    if len(outputs.logits) != len(split):
        raise ValueError(f"cached_batches: {len(split)} examples but outputs of {len(outputs.logits)}; give the cached split.")
    # The order of an epoch depends on the seed and the number of examples alone: shuffle their numbers as labels.
    numbers = Split(images=np.zeros((len(split), 1, 1, 1), np.float32), labels=np.arange(len(split), dtype=np.int32))
    return _taught(split, outputs, batches(numbers, batch_size, seed=seed, start_step=start_step))


def _taught(split: Split, outputs: Outputs, order: Iterator[Any]) -> Iterator[TaughtBatch]:
    for batch in order:
        rows = batch.labels
        features = {tap: tuple(np.asarray(x[rows]) for x in values) for tap, values in outputs.features.items()}
        answers = Outputs(np.asarray(outputs.logits[rows]), features)
        yield TaughtBatch(split.images[rows], split.labels[rows], batch.mask, answers)


def _key(teacher: Teacher, split: Split, taps: tuple[str, ...]) -> dict[str, Any]:
    """What the outputs depend on."""
    weights = to_arrays({"params": teacher.params, **teacher.model_state})
    return {
        "version": _VERSION,
        "weights": {path: _hash(leaf) for path, leaf in weights.items()},
        "images": _hash(split.images),
        "taps": list(taps),
        "dtype": teacher.dtype,
    }


def _hash(array: Any) -> str:
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()[:32]
    return f"{array.dtype}[{','.join(map(str, array.shape))}] {digest}"


def _named(outputs: Outputs) -> dict[str, Any]:
    """Arrays by file name; a pattern may hold what a file name may not."""
    features = outputs.features.values()
    return {"logits": outputs.logits, **{f"feature_{i}_{j}": x for i, vs in enumerate(features) for j, x in enumerate(vs)}}


def _write(folder: Path, key: dict[str, Any], run: Teach, split: Split, batch_size: int, progress: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_in_the_making(folder) as made:
        temporary = Path(made)
        files: dict[str, np.memmap] = {}
        done, counts = 0, {}
        bar = tqdm(total=len(split), desc="teacher", unit="example", disable=None if progress else True)
        with bar:
            for batch in eval_batches(split, batch_size):
                rows, outputs = int(batch.mask.sum()), run(batch.images)
                counts = {tap: len(values) for tap, values in outputs.features.items()}
                for name, value in _named(outputs).items():
                    array = _storable(name, value, len(batch.mask))
                    if name not in files:
                        shape = (len(split), *array.shape[1:])
                        files[name] = np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", array.dtype, shape)
                    files[name][done : done + rows] = array[:rows]
                done += rows
                bar.update(rows)
        for file in files.values():
            file.flush()
        about = {**key, "arrays": describe(files), "counts": counts}
        write_json(temporary / _ABOUT, about)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _ABOUT).exists():  # else another process was faster, and what it wrote is read
                raise


def _storable(name: str, value: Any, batch: int) -> np.ndarray:
    if value.ndim < 1 or value.shape[0] != batch:
        raise ValueError(f"cache_outputs: {name} must have one row an example, {batch}; got shape {value.shape}. Tap another.")
    return np.asarray(value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value)


def _read(folder: Path, key: dict[str, Any], run: Teach, split: Split, batch_size: int) -> Outputs:
    try:
        about = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is there, but is no cache of outputs: {error}. Name another folder.") from error
    with collect(f"the cache at {folder} is stale; delete it, or name another folder") as problems:
        problems.extend(_changes(about, key))
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in about["arrays"]}
        if describe(arrays) != about["arrays"]:
            raise ValueError(f"it holds {describe(arrays)}, not {about['arrays']}")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"the cache at {folder} is damaged: {error}. Delete it.") from error
    taps = {
        tap: tuple(arrays[f"feature_{i}_{j}"] for j in range(about["counts"][tap])) for i, tap in enumerate(about["counts"])
    }
    outputs = Outputs(arrays["logits"], taps)
    _probe(folder, outputs, run, split, batch_size)
    return outputs


def _changes(about: dict[str, Any], key: dict[str, Any]) -> Iterator[str]:
    if about.get("version") != _VERSION:
        yield f"format version {about.get('version')}, needed {_VERSION}"
        return
    before, now = about["weights"], key["weights"]
    changed = [path for path in now if before.get(path) != now[path]] + [path for path in before if path not in now]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        yield f"the teacher's weights changed: {shown}"
    for name, what in (("images", "the images"), ("taps", "the taps"), ("dtype", "the teacher's precision")):
        if about[name] != key[name]:
            yield f"{what} changed: cached {about[name]}, now {key[name]}"


def _probe(folder: Path, outputs: Outputs, run: Teach, split: Split, batch_size: int) -> None:
    """Compute the first batch anew: no hash can tell that the model's code changed."""
    batch = next(eval_batches(split, batch_size))
    rows = int(batch.mask.sum())
    stored, fresh = _named(outputs), _named(run(batch.images))
    for name, value in fresh.items():
        old, new = (np.asarray(x[:rows], np.float64) for x in (stored[name], _storable(name, value, len(batch.mask))))
        if old.shape != new.shape or not np.abs(old - new).max() <= _TOLERANCE * np.abs(old).max() + 1e-6:
            raise ValueError(
                f"the cache at {folder} is stale; delete it, or name another folder: with the same weights and images the "
                f"teacher now gives other {name}. Its function changed."
            )
