"""The report over finished runs: their forms read, seeds joined, columns, fronts, pictures, and what it says when it cannot."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from experiments import report
from experiments.common import cli, figures
from experiments.common.figures import Point, accuracy_against, pareto
from experiments.common.finished import read
from experiments.report import table

COMMITTED = sorted((cli.ROOT / "experiments" / "results").glob("*/summary.json"))


def write(folder: Path, summary: object, config: object = None) -> Path:
    """Make a run's folder."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def compressed(seed: int, error: float, size: int) -> dict:
    """The summary of a run of deep compression."""
    return {
        "name": "tiny",
        "seed": seed,
        "dense_error": 0.5,
        "error": error,
        "file_bytes": size + 700,
        "program_bytes": 700,
        "nonzeros": 40,
        "parameters": 1000,
        "latency_ratio": {"1": 2.0, "128": 0.8},
        "seconds": 30.0,
        "revision": "abc",
    }


def cells(rows) -> list[dict[str, str]]:
    """The table by column."""
    head, *lines = table(rows)
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_seeds_of_one_config_are_joined(tmp_path):
    for seed, error, size in ((0, 0.1, 200), (1, 0.2, 300), (2, 0.3, 100)):
        write(tmp_path / "runs" / f"seed{seed}", compressed(seed, error, size), {"name": "tiny", "seed": seed})
    dense, small = cells(read([tmp_path / "runs"]))
    assert dense == {**dict.fromkeys(small, ""), "row": "dense", "seeds": "3", "accuracy %, last epoch": "50.00 ± 0.00",
                     "parameters": "1,000"}  # fmt: skip
    assert small == {
        "row": "compressed",
        "seeds": "3",
        "accuracy %, last epoch": "80.00 ± 10.00",
        "parameters": "1,000",
        "non-zeros": "40",
        "bytes": "200 ± 100",
        "time, batch 1": "0.50 ± 0.00",  # twice as fast is half the time
        "time, batch 128": "1.25 ± 0.00",
    }
    # The same, each seed's folder named for itself, in another order.
    again = cells(read([tmp_path / "runs" / f"seed{seed}" for seed in (2, 0, 1)]))
    assert again == [dense, small]


def test_what_is_not_the_same_is_not_joined(tmp_path):
    one, other = (write(tmp_path / f"{n}-seed{n}", compressed(n, 0.1, 9), {"seed": n, "epochs": n}) for n in (0, 1))
    assert [(row["run"], row["seeds"]) for row in cells(read([one, other]))] == [("0-seed0", "1")] * 2 + [("1-seed1", "1")] * 2
    # Without a config no one can know, and the same seed twice is no second seed.
    bare = [write(tmp_path / f"bare{n}", compressed(n, 0.1, 9)) for n in (0, 1)]
    assert len(read(bare)) == 4
    assert len(read([one, one])) == 4


def test_rows_are_told_apart_by_what_differs(tmp_path):
    result = {"row": "a", "settings": {"panel": "p", "sparsity": 0.5, "bits": None}, "seeds": [0], "error": [0.25]}
    dense, few = ({**result, "settings": {**result["settings"], "sparsity": 0.9, "bits": bits}} for bits in (None, 4))
    results = [result, dense, few, {**result, "row": "b"}]
    rows = read([write(tmp_path / "r", {"name": "r", "results": [*results, {**result, "row": "b"}]})])
    assert [line[0] for line in table(rows)[1:]] == [
        "a, sparsity 0.5",
        "a, sparsity 0.9",
        "a, sparsity 0.9, bits 4",
        "b",
        "b (2)",
    ]


def test_rows_of_one_seed_each_and_figures_of_other_units(tmp_path):
    cell = {
        "settings": {"task": "t", "fraction": 0.5},
        "row": "svd",
        "parameters": 70,
        "macs_share": 0.5,
        "ranks": [{"a": [1]}],
    }
    results = [{**cell, "seeds": [seed], "figure": [8.0 + seed], "loss": 0.5} for seed in (0, 1, 2)]
    results += [{**cell, "seeds": [0], "settings": {"task": "t", "fraction": 0.25}, "figure": [20.0], "loss": 0.5}]
    two, one = cells(read([write(tmp_path / "r", {"name": "r", "results": results})]))
    assert two["row"] == "svd, fraction 0.5"
    assert two["seeds"] == "3"
    assert two["own figures"] == "macs_share 0.50 ± 0.00; figure 9.00 ± 1.00; loss 0.50 ± 0.00"
    assert "accuracy %, last epoch" not in two
    assert "MACs" not in two
    assert one["own figures"] == "macs_share 0.50; figure 20.00; loss 0.50"


def full(row: str, error: float, size: int, macs: int, **more: object) -> dict:
    about = {"row": row, "seeds": [0, 1], "error": [error, error + 0.02], "best_error": [error, error], "parameters": 9}
    return {**about, "nonzeros": [1234567, 1234569], "macs": macs, "file_bytes": size, "seconds": 60.0, **more}


def test_the_report_of_a_run(tmp_path, capsys):
    reference = {"reference": "40x | 1.58 %", "source": "Han 2016, table 1", "latency_ratio": {"1": 0.25}, "revision": "abc"}
    results = [full("dense", 0.1, 4000, 900), full("small", 0.2, 100, 30, **reference)]
    run = write(tmp_path / "run", {"name": "mine", "results": results}, {"name": "mine", "data": {"name": "mnist"}})
    made = {
        "command": "python -m experiments.sparsity",
        "python": "3.11",
        "packages": {"jax": "0.10"},
        "backend": "cpu",
        "cores": 2,
    }
    (run / "environment.json").write_text(json.dumps(made))
    report.main([str(run), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# mine"
    assert lines[5] == (
        "| small | 2 | 79.00 ± 1.41 | 80.00 ± 0.00 | 9 | 1,234,568 ± 1 | 30 | 100 | 0.25 | 40x \\| 1.58 % | Han 2016, table 1 |"
    )
    assert "- mine: revision abc; seeds 0, 1; 2.0 minutes." in lines
    assert "- run: `python -m experiments.sparsity`; Python 3.11, jax 0.10, on cpu, 2 cores." in lines
    drawn = [f"{name}.{kind}" for name in ("bytes", "macs") for kind in ("pdf", "png", "svg")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*drawn, "report.md"]
    assert "![accuracy against bytes of the file](bytes.png)" in lines
    assert "small" in capsys.readouterr().out

    # A report of a run without such figures has no column and no picture of them, not even the earlier one's.
    bare = write(tmp_path / "bare", {"name": "bare", "results": [{"row": "a", "seeds": [0], "error": [0.5]}]})
    report.main([str(bare), "--out", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]
    assert "| row | seeds | accuracy %, last epoch |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("path", COMMITTED, ids=[path.parent.name for path in COMMITTED])
def test_committed_results_are_read(path):
    written = json.loads(path.read_text())
    lines = cells(read([path.parent]))
    assert len({line["row"] for line in lines}) == len(lines)
    # A family without a file under its limit, and a row that was refused, have no figures; a refusal says why.
    results = list(enumerate(written.get("results", [])))
    empty = {number for number, result in results if result.get("error") == [] or len(result.get("refused", "")) > 20}
    for line in (line for number, line in enumerate(lines) if number not in empty):
        assert line.get("accuracy %, last epoch") or line.get("own figures")
    for result, line in zip(written.get("results", []), lines):
        if result.get("error") == []:  # a family without a file under the limit: no seed was trained, no figure is shown
            assert line["accuracy %, last epoch"] == ""
        elif "seeds" in result and "error" in result:
            mean = statistics.mean(100 - 100 * error for error in result["error"])
            assert line["accuracy %, last epoch"].startswith(f"{mean:.2f}")


def point(cost: float, accuracy: float, **more: object) -> Point:
    return Point(**{"cost": cost, "accuracy": accuracy, "deviation": 0.3, "series": "s", "label": "x", **more})


def test_the_front_is_that_of_a_scan():
    rng = np.random.default_rng(0)
    points = [point(float(cost), float(accuracy)) for cost, accuracy in np.cumsum(rng.integers(-4, 6, (60, 2)), 0)]
    kept = set()
    for cost in sorted({p.cost for p in points}):
        best = max(p.accuracy for p in points if p.cost == cost)
        if all(best > accuracy for _, accuracy in kept):
            kept.add((cost, best))
    assert [(p.cost, p.accuracy) for p in dict.fromkeys(pareto(points))] == sorted(kept)
    assert 2 <= len(kept) < 60


def test_labels_cover_neither_points_nor_each_other(tmp_path, monkeypatch):
    drawn = []

    class Kept(figures.Figure):
        def __init__(self, **options):
            super().__init__(**options)
            drawn.append(self)

    monkeypatch.setattr(figures, "Figure", Kept)
    costs = np.geomspace(1e3, 1.6e3, 9)  # on a front, near each other
    points = [point(cost, 90 + 0.3 * n, label=f"method {n}, sparsity 0.9", task="a") for n, cost in enumerate(costs)]
    points += [point(cost, 80, label="beaten", task="a") for cost in (2e3, 1e6)]
    points += [point(5, 95, label="other", task="b", panel="p"), point(10, 100, label="whole", task="b", panel="p")]
    accuracy_against(tmp_path / "f.png", points, cost="bytes")
    (figure,) = drawn
    figure.canvas.draw()  # as in the PNG, since the PDF with its own pixels was written last
    renderer = figure.canvas.get_renderer()
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == [p.label for p in points[:9]]
    assert sorted(text.get_text() for text in second.texts) == ["other", "whole"]
    boxes = [Text.get_window_extent(text, renderer) for text in first.texts]  # without the line to its point
    inside = first.get_window_extent(renderer)
    for box in boxes:
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
        for p in points[:11]:
            assert not box.contains(*first.transData.transform((p.cost, 100 - p.accuracy)))
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def nothing(folder: Path) -> None:
    folder.mkdir()


def unfinished(folder: Path) -> None:
    write(folder, "{}", {"name": "a"})
    (folder / "summary.json").unlink()


def one_seed_unfinished(folder: Path) -> None:
    write(folder / "seed0", compressed(0, 0.1, 9), {"seed": 0})
    unfinished(folder / "seed1")


def damaged(folder: Path) -> None:
    write(folder, '{"results": [')


def nameless(folder: Path) -> None:
    write(folder, {"results": [{"error": [0.5]}]})


def foreign(folder: Path) -> None:
    write(folder, {"accuracy": 3})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "is no folder"),
        (nothing, "is no run's folder"),
        (unfinished, "run holds an unfinished run"),
        (one_seed_unfinished, "run/seed1 holds an unfinished run"),
        (damaged, "cannot be read as JSON"),
        (nameless, "must name its row"),
        (foreign, "has no results"),
    ],
)
def test_what_cannot_be_reported_ends_in_one_line(tmp_path, capsys, make, says):
    make(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "out").exists()


def test_a_run_keeps_its_own_report(tmp_path, capsys):
    run = write(tmp_path / "run", compressed(0, 0.1, 9))
    (run / "report.md").write_text("its own")
    with pytest.raises(SystemExit):
        report.main([str(run), "--out", str(run)])
    assert "Choose another --out" in capsys.readouterr().err
    assert (run / "report.md").read_text() == "its own"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(["--help"])
    assert stop.value.code == 0
    assert "python -m experiments.report runs/gradual_pruning runs/sparse_training --out" in capsys.readouterr().out
