"""Figures are drawn again from a committed summary, for pages and for papers, with the same bytes each time."""

import shutil

import pytest

from experiments import redraw
from experiments.common.figures import COLORS, look

RESULTS = redraw.ROOT / "experiments" / "results"


def test_figures_of_a_committed_study_are_drawn_again(tmp_path):
    folder = tmp_path / "entropy_training_lenet300"
    shutil.copytree(RESULTS / folder.name, folder, ignore=shutil.ignore_patterns("*.png", "*.svg", "*.pdf"))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    redraw.main([str(folder), str(RESULTS / "graph.md")])
    drawn = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in kept}
    assert sorted(drawn) == ["accuracy.pdf", "accuracy.png", "accuracy.svg"]
    assert drawn["accuracy.png"][:4] == b"\x89PNG"
    assert drawn["accuracy.pdf"][:5] == b"%PDF-"
    assert b"<svg" in drawn["accuracy.svg"]
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    redraw.main([str(folder)])
    assert {name: (folder / name).read_bytes() for name in drawn} == drawn


def test_what_is_no_study_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        redraw.main([str(tmp_path)])
    assert f"No folder has a summary.json and the name of a config in {redraw.ROOT / 'configs'}" in capsys.readouterr().err


def test_no_two_series_look_alike():
    looks = [(look(n)["color"], look(n)["marker"]) for n in range(11 * len(COLORS))]
    assert len({(int(color[1:]) % len(COLORS), marker) for color, marker in looks}) == len(looks)
