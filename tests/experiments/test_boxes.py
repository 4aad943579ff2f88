"""Detection: photos read back, the average precision by hand, losses that fall, and boxes found where they are."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.common import cli
from experiments.common.config import load_config
from experiments.common.objectives.boxes import Boxes, average_precision, decoded, giou, overlaps
from experiments.studies.applications import Applications
from lepton_jax.data import boxes_of, load_bccd
from lepton_jax.models import Detector

RNG = np.random.default_rng(11)


def test_photos_with_boxes(tmp_path):
    files = []
    for value in (40, 200, 90):
        out = io.BytesIO()
        Image.fromarray(np.full((48, 64, 3), value, np.uint8)).save(out, "JPEG")
        files.append(np.frombuffer(out.getvalue(), np.uint8))
    boxes = np.array([[0, 8, 16, 24], [32, 0, 64, 48], [4, 4, 8, 8]], np.float32)
    where = {"offsets": np.cumsum([0, *map(len, files)]), "box_offsets": np.array([0, 2, 2, 3])}
    more = {"box_label": np.array([1, 0, 2]), "split": np.arange(3), "class_names": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "a.npz", jpeg=np.concatenate(files), boxes=boxes, **where, **more)
    found = load_bccd(tmp_path / "a.npz", height=24, width=32)
    assert found.train.images.shape == (1, 25, 32, 3)
    np.testing.assert_allclose(found.train.images[0, :24], 40 / 255, atol=0.02)
    rows = boxes_of(found.train.images)[0]
    np.testing.assert_array_equal(rows[:2], [[2, 0, 4, 8, 12], [1, 16, 0, 32, 24]])
    assert not rows[2:].any()
    assert [split.labels.tolist() for split in (found.train, found.validation, found.test)] == [[2], [0], [1]]
    with pytest.raises(FileNotFoundError, match="Get BCCD"):
        load_bccd(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Raise width"):
        load_bccd(tmp_path / "a.npz", height=2, width=2)


def test_overlaps_by_counting_pixels():
    def pixels(box):
        grid = np.zeros((20, 20), bool)
        grid[box[1] : box[3], box[0] : box[2]] = True
        return grid

    for _ in range(20):
        low = RNG.integers(0, 10, (2, 2))
        one, other = np.concatenate([low, low + RNG.integers(1, 10, (2, 2))], axis=1)
        a, b = pixels(one), pixels(other)
        share = (a & b).sum() / (a | b).sum()
        np.testing.assert_allclose(overlaps(one.astype(float), other[None].astype(float)), [share])
        hull = np.prod(np.maximum(one[2:], other[2:]) - np.minimum(one[:2], other[:2]))
        wanted = share - (hull - (a | b).sum()) / hull
        np.testing.assert_allclose(giou(jnp.asarray(one, jnp.float32), jnp.asarray(other, jnp.float32)), wanted, atol=1e-5)


def test_the_average_precision_by_hand():
    """Hit, miss, hit of three true boxes: precisions 1 and 2/3 at two of three recalls; a box found twice is a miss."""
    rows = np.zeros((2, 4, 5))
    rows[0, :2] = [[1, 0, 0, 10, 10], [1, 20, 20, 30, 30]]
    rows[1, 0] = [1, 0, 0, 10, 10]
    found = [
        np.array([[0, 0.9, 0, 0, 10, 9], [0, 0.8, 0, 0, 10, 10], [0, 0.1, 40, 40, 50, 50]]),
        np.array([[0, 0.7, 1, 0, 10, 10]]),
    ]
    np.testing.assert_allclose(average_precision(found, rows, 2), (1 + 2 / 3) / 3)
    assert average_precision([np.zeros((0, 6))] * 2, rows, 1) == 0


def perfect(rows, height, width):
    """Outputs of one image that say its boxes at the cells of their middles."""
    out = np.full((height, width, 7), -9.0, np.float32)
    out[..., 3:] = 0
    for label, *box in rows[rows[:, 0] > 0]:
        middle = (np.array(box[:2]) + box[2:]) / 2
        x, y = (middle // 8).astype(int)
        out[y, x, int(label) - 1] = 9
        centre = 8 * (np.array([x, y]) + 0.5)
        out[y, x, 3:] = np.log(np.concatenate([centre - box[:2], np.array(box[2:]) - centre]) / 8)
    return out


def test_boxes_are_found_where_they_are_said():
    rows = np.zeros((1, 19, 5), np.float32)
    rows[0, :2] = [[1, 2, 2, 13, 12], [3, 16, 4, 31, 22]]
    out = perfect(rows[0], 3, 4)
    np.testing.assert_allclose(decoded(jnp.asarray(out[..., 3:]))[1, 2], [16, 4, 31, 22], rtol=1e-4)
    objective = Boxes(classes=3)
    assert average_precision([objective.found(out)], rows, 3) == 1
    near = Boxes(classes=3, radius=0.5)
    low, high = (float(near._one(jnp.asarray(some), jnp.asarray(rows[0]))) for some in (out, 0 * out))
    assert low < 0.05 < high


def test_the_loss_falls():
    images = RNG.random((4, 25, 32, 3)).astype(np.float32)
    images[:, -1] = 0
    images[:, -1].reshape(4, -1)[:, :5] = [2, 4, 4, 20, 20]
    net, objective = Detector(features=(4, 6, 8), depth=1), Boxes(classes=3)
    variables = net.init(jax.random.key(0), images[:1])

    def apply(params, model_state, x, *, train, key):
        return net.apply({"params": params, **model_state}, x), model_state

    batch = type("Batch", (), {"images": jnp.asarray(images)})
    loss = jax.jit(partial(lambda p, s: objective.loss(apply, 1e-5)(p, s, batch, jax.random.key(0))[0]))
    state = {"batch_stats": variables["batch_stats"]}
    slope = jax.jit(jax.grad(loss))
    params = variables["params"]
    before = float(loss(params, state))
    for _ in range(20):
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, slope(params, state))
    assert float(loss(params, state)) < before


def test_the_config_is_whole():
    made = load_config(cli.ROOT / "configs" / "applications_detection.py", Applications)
    assert (made.name, made.tasks[0].objective.metric) == ("applications_detection", "ap50")
