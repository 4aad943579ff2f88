"""Sentences written by hand."""

from pathlib import Path

import numpy as np
import pytest

from lepton_jax.data import load_sst2

LINES = {"train": ["good good film\t1", "bad film\t0", "good plot\t1"], "dev": ["bad unheard\t0"], "test": ["film\t1", "\t0"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, lines in LINES.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_words_are_numbered_by_how_often_they_train(folder: Path):
    dataset = load_sst2(folder, length=4, tokens=5)
    # good 3 times, film twice; of bad and plot, once each, the first by the alphabet is the fifth token.
    np.testing.assert_array_equal(dataset.train.images[..., 0, 0], [[2, 2, 3, 0], [4, 3, 0, 0], [2, 1, 0, 0]])
    np.testing.assert_array_equal(dataset.validation.images[..., 0, 0], [[4, 1, 0, 0]])
    np.testing.assert_array_equal(dataset.test.images[..., 0, 0], [[3, 0, 0, 0], [0, 0, 0, 0]])
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert (dataset.validation.labels.tolist(), dataset.test.labels.tolist()) == ([0], [1, 0])
    assert dataset.train.images.dtype == np.float32


def test_long_sentences_are_cut(folder: Path):
    assert load_sst2(folder, length=2, tokens=9).train.images.shape == (3, 2, 1, 1)


def test_an_incomplete_folder_names_what_it_lacks(folder: Path):
    (folder / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no dev\.tsv\. Get the binary Stanford Sentiment Treebank"):
        load_sst2(folder)


@pytest.mark.parametrize("line", ["no label", "half\t0.5", "\t"])
def test_a_line_of_another_form_is_named(folder: Path, line: str):
    (folder / "test.tsv").write_text(f"film\t1\n{line}\n")
    with pytest.raises(ValueError, match=r"test\.tsv, line 2: must be a sentence, a tab, and 0 or 1"):
        load_sst2(folder)


@pytest.mark.parametrize("options", [{"length": 0}, {"tokens": 2}])
def test_settings_out_of_range_are_refused(folder: Path, options: dict[str, int]):
    with pytest.raises(ValueError, match="must be at least"):
        load_sst2(folder, **options)
