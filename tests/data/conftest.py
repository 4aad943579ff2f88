"""A tiny TFDS set written by hand, and the real ones where they are at hand."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SHAPE = (4, 5, 3)


def _tiny_arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one split of the tiny set."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), rng.integers(0, 3, count)


def _write_split(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["label"].int64_list.value.append(int(label))
        writer.write(example.SerializeToString())
    writer.close()


def _feature(kind: str, name: str, **content: object) -> dict[str, object]:
    module, cls = name.rsplit(".", 1)
    return {kind: content, "pythonClassName": f"tensorflow_datasets.core.features.{module}.{cls}"}


@pytest.fixture(scope="session")
def tiny_arrays() -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """The function of (count, seed) that the tiny set's splits were made with."""
    return _tiny_arrays


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data folder that holds 'tinyset', 30 and 9 images, prepared as array_record without TFDS's own writer."""
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "tinyset" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for name, count, seed in (("train", 30, 0), ("test", 9, 1)):
        _write_split(folder / f"tinyset-{name}.array_record-00000-of-00001", *_tiny_arrays(count, seed))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": name, "shardLengths": [str(count)], "numBytes": "1", "filepathTemplate": template})
    image = _feature("image", "image_feature.Image", dtype="uint8", shape={"dimensions": [str(n) for n in SHAPE]})
    features = {"image": image, "label": _feature("classLabel", "class_label_feature.ClassLabel", numClasses="3")}
    (folder / "features.json").write_text(json.dumps(_feature("featuresDict", "features_dict.FeaturesDict", features=features)))
    info = {"name": "tinyset", "version": "1.0.0", "fileFormat": "array_record", "splits": splits, "moduleName": "tinyset"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="session")
def real_tfds() -> str:
    """A TFDS data folder that holds MNIST."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[2].parent / "shared" / "data" / "tfds"))
    if not (folder / "mnist").is_dir():
        pytest.skip("optional real data: no prepared MNIST; point TFDS_DATA_DIR to it")
    return str(folder)
