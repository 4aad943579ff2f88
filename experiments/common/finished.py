"""Finished runs, read back: the rows of all studies, which have one form (see `results`), seeds of one config joined."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import environment
from experiments.common.results import Result, numbers
from lepton_jax.core.files import read_json

FIGURES = ("error", "best_error", "parameters", "nonzeros", "macs", "file_bytes")
"""What means the same in every study."""
_ABOUT = ("row", "settings", "seeds", "seconds", "revision", "reference", "source", "latency_ratio")
"""What a result says besides its figures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a finished run.

    Args:
      run: the run's name.
      config: of the run, as text, without its seeds; rows of different configs are never joined.
      task: of which accuracies can be compared: the data set, if the config says, or else the run.
      result: its figures as lists, and so its latency by batch.
    """

    run: str
    config: str
    task: str
    result: Result

    @property
    def name(self) -> str:
        """Of the row."""
        return str(self.result["row"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else tells it from others of the name."""
        return self.result.get("settings", {})

    @property
    def seeds(self) -> list[int]:
        """Empty if the study does not say."""
        return self.result.get("seeds", [])

    @property
    def own(self) -> dict[str, list[float]]:
        """The study's own figures, by their names."""
        return {name: self.result[name] for name in self.result if name not in (*_ABOUT, *FIGURES)}

    def joins(self, other: "Row") -> bool:
        """Whether both are the same row, of other seeds."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("run", "config", "name", "settings"))
        return same and bool(self.seeds and other.seeds) and not set(self.seeds) & set(other.seeds)

    def joined(self, other: "Row") -> "Row":
        """Return the row of all seeds of both."""
        mine, more = self.result, other.result
        joined = {**more, **mine, "seconds": mine.get("seconds", 0.0) + more.get("seconds", 0.0)}
        revisions = {result["revision"] for result in (mine, more) if "revision" in result}
        joined |= {"revision": ", ".join(sorted(revisions))} if revisions else {}
        joined |= _chained({n: v for n, v in mine.items() if isinstance(v, list)}, more)
        joined["latency_ratio"] = _chained(mine.get("latency_ratio", {}), more.get("latency_ratio", {}))
        return dataclasses.replace(self, result=joined)


def _chained(first: Mapping[str, list[Any]], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: values + second.get(name, []) for name, values in first.items()}


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
    name = summary.get("name") or folder.resolve().name
    path = folder / "config.json"
    whole = _json(path) if path.exists() else {"folder": str(folder.resolve())}
    config = json.dumps({key: value for key, value in whole.items() if key not in ("seed", "seeds")}, sort_keys=True)
    task = json.dumps(whole.get("data", config), sort_keys=True)
    rows = [Row(run=name, config=config, task=task, result=_listed(name, one)) for one in _results(summary, folder)]
    return [dataclasses.replace(row, task=f"{row.task} {row.settings.get('task', '')}") for row in rows]


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "Restore it, or delete the folder and run its command again.")


def _results(summary: Mapping[str, Any], folder: Path) -> list[Result]:
    """Return a summary's results; those of deep compression are the figures of one run, dense and as its file."""
    if "results" in summary:
        return list(summary["results"])
    missing = [key for key in ("seed", "error", "dense_error", "file_bytes", "program_bytes") if key not in summary]
    if missing:
        raise ValueError(f"{folder / 'summary.json'} has no results, nor the figures of one run: {', '.join(missing)}.")
    about = {"seeds": [summary["seed"]], "revision": summary.get("revision", "unknown")}
    of_dense = {"error": "dense_error", "best_error": "dense_best_error", "parameters": "parameters", "macs": "macs"}
    dense = {name: summary[key] for name, key in of_dense.items() if key in summary}
    same = ("error", "best_error", "parameters", "nonzeros", "macs", "seconds", "reference", "source")
    whole = {name: summary[name] for name in same if name in summary}
    whole["file_bytes"] = summary["file_bytes"] - summary["program_bytes"]
    # There a ratio is how many times as fast the file is; in the common form it is of times.
    whole["latency_ratio"] = {batch: 1 / ratio for batch, ratio in summary["latency_ratio"].items()}
    return [{"row": "dense", **about, **dense}, {"row": "compressed", **about, **whole}]


def _listed(run: str, result: Result) -> Result:
    """Return a result with every figure that is a number, or numbers, as a list."""
    if "row" not in result:
        raise ValueError(f"run {run}: every result must name its row; one has only {', '.join(result)}.")
    named = {name: numbers(result, name) for name in result if name not in _ABOUT}
    figures = {name: values for name, values in named.items() if values and all(isinstance(v, (int, float)) for v in values)}
    ratios = result.get("latency_ratio", {})
    about = {name: result[name] for name in _ABOUT if result.get(name)}
    return {**about, **figures, "latency_ratio": {batch: numbers(ratios, batch) for batch in ratios}}


def labels(rows: Sequence[Row]) -> list[str]:
    """Name every row of one run so that no two have the same name: with as few of its settings as that takes.

    Example:
      >>> both = [{"row": "a", "settings": {"panel": "", "sparsity": sparsity}} for sparsity in (0.5, 0.9)]
      >>> labels([Row(run="r", config="", task="", result=one) for one in both])
      ['a, sparsity 0.5', 'a, sparsity 0.9']
    """
    named = [row.name for row in rows]
    for row in dict.fromkeys(named):
        alike = [number for number, other in enumerate(rows) if other.name == row]
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
