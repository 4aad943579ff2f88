"""Finished runs, read back: whatever study made them, their rows in one form.

The common form of a row in `summary.json` is a dict with ``row``, ``seeds``, ``error`` (fractions, one a seed, last epoch),
``best_error`` (best epoch), ``parameters``, ``nonzeros``, ``macs``, ``file_bytes`` (without the program), ``latency_ratio``
(batch -> time over the dense model's), ``reference`` and ``source``; what is missing stays empty, and what a study has of its
own is kept under its name. A row of one seed may have ``seed`` and single figures; such rows of one kind are joined.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import environment
from experiments.common.results import Result

FIGURES = ("error", "best_error", "parameters", "nonzeros", "macs", "file_bytes")
"""What a row may have, a number a seed or one for all."""
_TEXTS = ("reference", "source", "revision")
_SETTINGS = ("sparsity", "fraction", "rate", "temperature")
"""Fractional numbers that say what a row is, where others are measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a finished run; figures are tuples, by seed where there is one a seed.

    Args:
      run: the run's name.
      config: of the run, as text, without its seeds; rows of different configs are never joined.
      task: of which accuracies can be compared: the data set, if the config says, or else the run.
      row: its name.
      settings: what else tells it from others of the name.
      seeds: empty if the study does not say.
      figures: by the names of `FIGURES`.
      latency: batch -> time over the dense model's.
      own: the study's own figures, by their names.
      texts: the paper's figure, its source, the revision of the code.
      seconds: that it took.
    """

    run: str
    config: str
    task: str
    row: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, ...]]
    latency: Mapping[int, tuple[float, ...]]
    own: Mapping[str, tuple[float, ...]]
    texts: Mapping[str, str]
    seconds: float

    def joins(self, other: "Row") -> bool:
        """Whether both are the same row, of other seeds."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("run", "config", "row", "settings"))
        return same and bool(self.seeds and other.seeds) and not set(self.seeds) & set(other.seeds)

    def joined(self, other: "Row") -> "Row":
        """Return the row of all seeds of both."""
        revisions = sorted({row.texts["revision"] for row in (self, other) if "revision" in row.texts})
        return dataclasses.replace(
            self,
            seeds=self.seeds + other.seeds,
            figures=_chained(self.figures, other.figures),
            latency=_chained(self.latency, other.latency),
            own=_chained(self.own, other.own),
            texts={**other.texts, **self.texts, **({"revision": ", ".join(revisions)} if revisions else {})},
            seconds=self.seconds + other.seconds,
        )


def _chained(first: Mapping[Any, tuple[float, ...]], second: Mapping[Any, tuple[float, ...]]) -> dict[Any, tuple[float, ...]]:
    return {name: first.get(name, ()) + second.get(name, ()) for name in (*first, *(n for n in second if n not in first))}


def read(folders: Sequence[Path]) -> list[Row]:
    """Return all rows of runs' folders, those of several seeds joined; runs of one name and several configs by their folders.

    Args:
      folders: each a run's, or one that has runs in it, e.g. one a seed.

    Raises:
      ValueError: if a folder is no run's, holds an unfinished run, or has figures that cannot be read.
    """
    rows: list[Row] = []
    places: dict[tuple[str, str], str] = {}
    for folder in folders:
        for run in runs_in(folder):
            for row in _rows(run):
                places.setdefault((row.run, row.config), _place(folder, run))
                known = next((number for number, other in enumerate(rows) if other.joins(row)), None)
                if known is None:
                    rows.append(row)
                else:
                    rows[known] = rows[known].joined(row)
    names = [name for name, _ in places]
    return [dataclasses.replace(r, run=places[r.run, r.config]) if names.count(r.run) > 1 else r for r in rows]


def _place(folder: Path, run: Path) -> str:
    """Name a run by its folders, from the one that was named on; a seed's folder is none."""
    parts = [folder.resolve().name, *run.relative_to(folder).parts]
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1].removeprefix("seed").isdigit() else parts)


def runs_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run's, or all runs below it, none of which may be unfinished.

    Raises:
      ValueError: if there is none, or an unfinished one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder of a finished run, e.g. runs/gradual_pruning.")
    if (folder / "summary.json").exists():
        return [folder]
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds an unfinished run: it has no summary.json. Finish it with its command and --resume.")
    below = [run for child in sorted(folder.iterdir()) if _holds_runs(child) for run in runs_in(child)]
    if not below:
        raise ValueError(f"{folder} is no run's folder, nor has it any in it: there is no config.json and no summary.json.")
    return below


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and any(next(folder.rglob(name), None) for name in ("config.json", "summary.json"))


def environment_of(folder: Path) -> dict[str, Any]:
    """Return what a run was made with; nothing, if it does not say."""
    path = folder / environment.FILE
    return _json(path) if path.exists() else {}


def _rows(folder: Path) -> list[Row]:
    summary = _json(folder / "summary.json")
    name = summary.get("name") or summary.get("config", {}).get("name") or folder.resolve().name
    path = folder / "config.json"
    whole = _json(path) if path.exists() else {"folder": str(folder.resolve())}
    config = json.dumps({key: value for key, value in whole.items() if key not in ("seed", "seeds")}, sort_keys=True)
    task = json.dumps(whole.get("data", config), sort_keys=True)
    return [_row(name, config, task, result) for result in _results(summary, folder)]


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(read).__name__}.")
    return read


def _results(summary: Mapping[str, Any], folder: Path) -> list[Result]:
    """Return a summary's results; those of deep compression are the figures of one run, dense and as its file."""
    if "results" in summary:
        return list(summary["results"])
    missing = [key for key in ("seed", "error", "dense_error", "file_bytes", "program_bytes") if key not in summary]
    if missing:
        raise ValueError(f"{folder / 'summary.json'} has no results, nor the figures of one run: {', '.join(missing)}.")
    about = {"seed": summary["seed"], "revision": summary.get("revision", "unknown")}
    dense = {"row": "dense", **about, "error": summary["dense_error"], "parameters": summary["parameters"], "seconds": 0.0}
    dense |= {name: summary[key] for name, key in (("best_error", "dense_best_error"), ("macs", "macs")) if key in summary}
    whole = {name: summary[name] for name in ("error", "parameters", "nonzeros", "seconds")}
    whole |= {name: summary[name] for name in ("best_error", "macs") if name in summary}
    size = summary["file_bytes"] - summary["program_bytes"]
    # There a ratio is how many times as fast the file is; in the common form it is of times.
    latency = {batch: 1 / ratio for batch, ratio in summary["latency_ratio"].items()}
    texts = {name: summary[name] for name in ("reference", "source") if name in summary}
    return [dense, {"row": "compressed", **about, **whole, **texts, "file_bytes": size, "latency_ratio": latency}]


def _row(run: str, config: str, task: str, result: Result) -> Row:
    if "row" not in result:
        raise ValueError(f"run {run}: every result must name its row; one has only {', '.join(result)}.")
    figures = {name: _numbers(result[name]) for name in FIGURES if name in result}
    strange = [name for name in figures if not _common(name, figures[name])]
    known = {"row", "seed", "seeds", "seconds", "latency_ratio", *_TEXTS, *figures} - set(strange)
    rest = {name: value for name, value in result.items() if name not in known}
    settings = {name: value for name, value in rest.items() if _is_setting(name, value)}
    own = {name: _numbers(value) for name, value in rest.items() if name not in settings}
    return Row(
        run=run,
        config=config,
        task=f"{task} {settings.get('task', '')}",
        row=str(result["row"]),
        settings=settings,
        seeds=tuple(result["seeds"]) if "seeds" in result else tuple([result["seed"]] if "seed" in result else []),
        figures={name: values for name, values in figures.items() if values and name not in strange},
        latency={int(batch): _numbers(ratio) for batch, ratio in result.get("latency_ratio", {}).items()},
        own={name: values for name, values in own.items() if values},
        texts={name: str(result[name]) for name in _TEXTS if result.get(name)},
        seconds=float(result.get("seconds", 0.0)),
    )


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a number or a list of such as a tuple; nothing of anything else."""
    values = value if isinstance(value, list) else [value]
    return tuple(values) if all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values) else ()


def _common(name: str, values: Iterable[float]) -> bool:
    """Whether a figure is in the unit of the common form: errors are fractions, the rest are counts.

    A study may give errors in percent, or perplexities, or a share of the dense model's multiplications: these are its own.
    """
    if name in ("error", "best_error"):
        return all(0 <= value <= 1 for value in values)
    return all(isinstance(value, int) for value in values)


def _is_setting(name: str, value: Any) -> bool:
    return name in _SETTINGS or value is None or isinstance(value, (str, int, bool))


def labels(rows: Sequence[Row]) -> list[str]:
    """Name every row of one run so that no two have the same name: with as few of its settings as that takes.

    Example:
      >>> settings = [{"panel": "", "sparsity": 0.5}, {"panel": "", "sparsity": 0.9}]
      >>> empty = {name: {} for name in ("figures", "latency", "own", "texts")}
      >>> about = {"run": "r", "config": "", "task": "", "row": "a", "seeds": (), "seconds": 0}
      >>> labels([Row(**about, **empty, settings=one) for one in settings])
      ['a, sparsity 0.5', 'a, sparsity 0.9']
    """
    named = [row.row for row in rows]
    for row in dict.fromkeys(named):
        alike = [number for number, other in enumerate(rows) if other.row == row]
        names = list(dict.fromkeys(name for number in alike for name in rows[number].settings))
        telling: list[str] = []
        while len({tuple(str(rows[n].settings.get(name)) for name in telling) for n in alike}) < len(alike) and names:
            name = names.pop(0)
            telling += [name] if len({str(rows[n].settings.get(name)) for n in alike}) > 1 else []
        for number in alike:
            shown = {name: rows[number].settings.get(name) for name in telling}
            named[number] = ", ".join([row, *(f"{name} {value}" for name, value in shown.items() if value not in (None, ""))])
    seen: dict[str, int] = {}
    for number, name in enumerate(named):
        seen[name] = seen.get(name, 0) + 1
        named[number] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return named
