"""Photos of blood smears with boxes around the cells."""

import io
import itertools
import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split


@checked
def load_bccd(path: str | os.PathLike[str], *, height: int = 240, width: int = 320) -> Dataset:
    """Load photos with boxes.

    Args:
      path: an npz archive: photo i is the JPEG file ``jpeg[offsets[i]:offsets[i + 1]]``, its boxes are
        ``boxes[box_offsets[i]:box_offsets[i + 1]]`` (xmin, ymin, xmax, ymax in pixels) with ``box_label``, of ``class_names``;
        ``split``: 0 train, 1 validation, 2 test.
      height, width: that photos are brought to, and boxes with them.

    Returns:
      float32 ``[N, height + 1, width, 3]``: the photo, in [0, 1], and one row more: ``3 width / 5`` boxes of five numbers,
      1 + class (0: no box) and the corners in pixels. The label is the number of boxes.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array, or a photo has more boxes than there is room for.

    Example:
      >>> load_bccd("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: BCCD, blood cell count and detection, of the repository Shenggan/BCCD_Dataset, 2017.
    """
    image_files = import_extra("PIL.Image", "data")
    get = "Get BCCD of the repository Shenggan/BCCD_Dataset, and write it to an npz archive of photos and boxes."
    names = ("jpeg", "offsets", "boxes", "box_label", "box_offsets", "split", "class_names")
    read = read_archive(path, names, get)
    room = 3 * width // 5
    counts = np.diff(read["box_offsets"]).astype(np.int32)
    if counts.max(initial=0) > room:
        raise ValueError(f"{path}: a photo has {counts.max()} boxes; a row has room for {room}. Raise width.")
    whole = np.zeros((len(counts), height + 1, width, 3), np.float32)
    for number, (start, stop) in enumerate(itertools.pairwise(read["offsets"])):
        photo = image_files.open(io.BytesIO(read["jpeg"][start:stop].tobytes()))
        scale = np.array([width / photo.width, height / photo.height] * 2, np.float32)
        photo.draft("RGB", (width, height))
        whole[number, :height] = np.asarray(photo.convert("RGB").resize((width, height)), np.float32) / 255
        mine = slice(*read["box_offsets"][number : number + 2])
        rows = np.zeros((room, 5), np.float32)
        rows[: counts[number], 0] = 1 + read["box_label"][mine].astype(np.float32)
        rows[: counts[number], 1:] = read["boxes"][mine] * scale[None]
        whole[number, height].reshape(-1)[: 5 * room] = rows.reshape(-1)
    parts = [Split(images=whole[some], labels=counts[some]) for some in (read["split"] == part for part in range(3))]
    return Dataset(name="bccd", num_classes=room + 1, train=parts[0], validation=parts[1], test=parts[2])


@checked
def boxes_of(images: np.ndarray) -> np.ndarray:
    """Return the boxes ``[N, room, 5]`` of the images of `load_bccd`: 1 + class (0: none), xmin, ymin, xmax, ymax.

    Example:
      >>> boxes_of(np.zeros((2, 9, 10, 3), np.float32)).shape
      (2, 6, 5)
    """
    room = 3 * images.shape[2] // 5
    return images[:, -1].reshape(len(images), -1)[:, : 5 * room].reshape(len(images), room, 5)
