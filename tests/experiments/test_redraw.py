"""Figures are drawn again from a committed summary, for pages and for papers, with the same bytes each time."""

import itertools
import shutil

import numpy as np
import pytest

from experiments import redraw
from experiments.common import curves, figures
from experiments.common.curves import Curve, Panel
from experiments.common.figures import COLORS, Point, look
from experiments.common.labels import spread

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


def test_names_beside_a_frame_are_apart_and_in_order():
    rng = np.random.default_rng(4)
    places = sorted(rng.uniform(0, 60, 8).tolist())
    moved = spread(places, 10.0)
    assert (np.diff(moved) >= 10.0 - 1e-9).all()
    assert spread([0.0, 100.0], 10.0) == [0.0, 100.0]
    assert spread([5.0, 5.0, 5.0], 4.0) == [1.0, 5.0, 9.0]


def test_of_many_curves_two_panels_are_made(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    many = [Curve(label=f"row_{n}", x=[1.0, 2.0], y=[[90.0 + n / 5], [80.0 + n]]) for n in range(10)]
    curves.draw(tmp_path / "a.png", [Panel(curves=many, levels={"dense": 95.0}, y_scale="error")], y="accuracy")
    left, right = drawn[0].axes
    assert left.get_ylim() == right.get_ylim()
    for axis, first in ((left, 0), (right, 5)):
        assert axis.get_legend() is None
        texts = {text.get_text(): text for text in axis.texts}
        assert sorted(texts) == sorted(["dense", *(f"row {n}" for n in range(first, first + 5))])
        boxes = sorted((text.get_window_extent().y0, text.get_window_extent().y1) for text in texts.values())
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(boxes))


def test_a_front_has_three_points_and_a_legend_eight_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    points = [Point(cost=10.0 * n, accuracy=50.0 + n, deviation=0.1, series=f"s_{n}", label=f"s_{n}") for n in range(1, 10)]
    figures.accuracy_against(tmp_path / "a.png", points[:2], cost="bytes")
    figures.accuracy_against(tmp_path / "a.png", points, cost="bytes")
    two, nine = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn)
    assert two == ["s 1", "s 2"]
    assert nine == ["on the front", "Pareto front"]
