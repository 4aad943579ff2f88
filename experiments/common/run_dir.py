"""The folder of a run: whose it is, and what may be written there."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common import cli, environment, processes, unfinished
from experiments.common.config import to_json
from lepton_jax.core.files import is_leftover, read_json, write_json
from lepton_jax.core.locks import hold
from lepton_jax.training import multihost


def claim_study(options: cli.Options[Any], *, besides: Sequence[str] = ()) -> tuple[Any, range, Path]:
    """Make the folder the study's whose command line was read, for all its seeds, or refuse; see `claim`.

    Args:
      options: of the command line.
      besides: fields that say nothing about what is in the folder: which rows are run now, where the data lie.

    Returns:
      The study, its seeds, its folder.
    """
    study = options.setting
    seeds = range(study.seed, study.seed + options.seeds)
    plain = {field.name: field.default for field in dataclasses.fields(study) if field.name in besides}
    config = {**to_json(dataclasses.replace(study, **plain)), "seeds": list(seeds)}
    claim(options.folder, config, resume=options.resume)
    return study, seeds, options.folder


def claim(run_dir: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make the folder this config's, or refuse.

    A finished run of the same config is made anew; everything else that is already there stays as it is. Until this process
    ends, no other one can claim the folder. In a run of several processes the first one does it, and the others wait.

    Args:
      run_dir: made if it is not there.
      config: as JSON; written to `config.json`. What runs it is written to `environment.json`.
      resume: go on with an unfinished run.

    Raises:
      ValueError: if the folder is another config's, is no run's, is claimed by another process, or holds an unfinished run
        and `resume` is False.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "run"
      >>> claim(folder, {"seed": 0}, resume=False)
      >>> claim(folder, {"seed": 1}, resume=True)
      Traceback (most recent call last):
      ...
      ValueError: .../run belongs to another config (it differs in: seed). Choose another --run-dir; nothing was overwritten.
    """
    if multihost.is_first():
        _claim(run_dir, json.loads(json.dumps(config)), resume=resume)
    processes.after(f"the folder {run_dir}")


def _claim(run_dir: Path, config: dict[str, Any], *, resume: bool) -> None:
    path = run_dir / "config.json"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{run_dir} is a file; a run needs a folder. Choose another --run-dir.") from error
    hold(run_dir)
    if path.exists():
        there = read_json(path, "Choose another --run-dir, or delete that folder to run anew.")
        if there != config:
            keys = [key for key in {**there, **config} if there.get(key) != config.get(key)]
            raise ValueError(
                f"{run_dir} belongs to another config (it differs in: {', '.join(keys)}). "
                "Choose another --run-dir; nothing was overwritten."
            )
        if not resume and not (run_dir / "summary.json").exists():
            raise ValueError(f"{run_dir} holds an unfinished run: add --resume to go on, or choose another --run-dir.")
        if not resume:
            _clear(run_dir)
    elif not all(is_leftover(file.name) for file in run_dir.iterdir()):
        raise ValueError(f"{run_dir} is not empty and no run's folder. Choose another --run-dir; nothing was overwritten.")
    write_json(path, config)
    environment.record(run_dir / environment.FILE, config.get("seeds", [config.get("seed", 0)]))


def _clear(run_dir: Path) -> None:
    """Remove what a run of this config wrote, to begin again; first what says that it is finished."""
    for name in ("summary.json", "metrics.jsonl", environment.FILE):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("checkpoints", unfinished.FOLDER, "stages", "rows", "files", "tensorboard", "wandb"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
