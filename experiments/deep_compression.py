"""Deep compression end to end: train, prune, quantize, and one small file that gives the same answers.

    python -m experiments.deep_compression
    python -m experiments.deep_compression --config configs/deep_compression_mnist_lenet300.py --seed 1
    python -m experiments.deep_compression --phases.1.transforms.0.sparsity 0.9 --run-dir runs/gentle
    python -m experiments.deep_compression --resume
    python -m experiments.deep_compression --seeds 3
    python -m experiments.deep_compression --writers tensorboard
    python -m experiments.deep_compression --processes 2
    python -m experiments.deep_compression --seeds 3 --sweep
    python -m experiments.deep_compression --seeds 3 --sweep --only whole no_pruning --resume

With `--sweep`, all rows of the config file's `sweep()`: every stage left out, other numbers of weights; one table and the curve
of error against bytes. `--resume` keeps the finished rows and goes on with the others.

Source: Han, Mao, Dally 2016, "Deep compression". Deviations: pruning is gradual and global, biases are pruned and quantized
too, and the file is coded by adaptive arithmetic coding of positions and values instead of gaps and Huffman's code.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.common import cli, processes
from experiments.common.config import Config, load_sweep, to_json
from experiments.common.results import load_result
from experiments.common.run_dir import claim
from experiments.common.writers import Place
from experiments.report import write as write_report
from experiments.studies.deep_compression import measure, report
from experiments.studies.deep_compression.phases import train
from lepton_jax.training import multihost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.LoggedOptions[cli.Setting]):
    """What this experiment takes."""

    sweep: bool = False
    """Run the rows of the config file's sweep() in place of its get_config()."""
    only: tuple[str, ...] = ()
    """With --sweep: run only the rows of these names."""


def experiment(options: Options[Config]) -> None:
    """Run the experiment, once a seed, or all rows of its sweep, and report it."""
    if not options.sweep:
        run(options)
        return
    whole, rows = options.setting, load_sweep(options.config)
    unknown = [name for name in options.only if name not in rows]
    if unknown:
        raise ValueError(f"--only: there is no row {', '.join(unknown)}; there are {', '.join(rows)}.")
    folder = options.run_dir or Path("runs") / f"{whole.name}-sweep"
    for name in options.only or rows:
        row = dataclasses.replace(rows[name], seed=whole.seed, max_steps=whole.max_steps)
        place = folder / name / (f"seed{row.seed}" if options.seeds == 1 else "")
        run(dataclasses.replace(options, setting=row, run_dir=place, resume=options.resume and place.exists()))
    if multihost.is_first():
        write_report([folder / name for name in options.only or rows], folder / "report", family=whole.name)


def run(options: Options[Config]) -> None:
    """Run one config, once a seed, and report it."""
    summaries = []
    for config, run_dir in options.runs:
        claim(run_dir, to_json(config), resume=options.resume)
        finished = run_dir / "summary.json"
        if finished.exists():
            print(f"{run_dir} is finished")
        else:
            compress(config, run_dir, resume=options.resume, writers=options.writers)
        processes.after(f"the run {run_dir}")
        summaries.append(load_result(finished))
    if len(summaries) > 1 and multihost.is_first():
        report.write_seeds(options.folder, summaries)


def compress(config: Config, run_dir: Path, *, resume: bool, writers: Sequence[Place] = ()) -> None:
    """Run one seed: train phase by phase, save, load in a process of its own, compare, report."""
    start = time.perf_counter()
    dataset = config.data.load()
    print(f"{config.name}, seed {config.seed}: {len(dataset.train)} training images, results in {run_dir}")
    meter = measure.Meter(config, dataset.test)
    for stage in train(config, dataset, run_dir, resume=resume, writers=writers):
        if not multihost.is_first():
            continue
        last = stage.name == config.phases[-1].name
        path = run_dir / "model.lepton" if last else run_dir / "stages" / f"{stage.name}.lepton"
        live = meter.add(stage, path)
    if not multihost.is_first():
        return
    loaded = measure.fresh_outputs(path, dataset.test.images)
    _check_same(live, loaded, path)
    meter.add_file(loaded)
    report.write(run_dir, config, meter.rows, macs=meter.macs, seconds=time.perf_counter() - start)


def _check_same(live: np.ndarray, loaded: np.ndarray, path: Path) -> None:
    """Raise unless the file gives the live view's outputs bit for bit."""
    if live.tobytes() != loaded.tobytes():
        worst = np.abs(live - loaded).max()
        raise ValueError(f"{path}: loaded in a process of its own, its outputs differ from the live view's by up to {worst}.")
    print(f"{path}: loaded in a process of its own, all {len(live)} outputs equal the live view's bit for bit")


main = partial(cli.run, experiment, default_config="deep_compression_digits.py", description=__doc__, options=Options)

if __name__ == "__main__":
    main()
