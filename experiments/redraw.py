"""Draw finished studies' figures again from their summaries, after a change to how they are drawn.

    python -m experiments.redraw experiments/results/combined
    python -m experiments.redraw experiments/results/* --configs configs

A study's folder has a `summary.json`, and the name of a file in `configs/`. Nothing is trained, and
pages and numbers stay as they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import ROOT, errors_in_one_line
from experiments.common.config import load_config
from experiments.common.figures import Drawing
from experiments.common.results import load_result
from experiments.common.study import Study


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of finished studies; others are passed over")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", help="the folder of the configs")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        for folder, config in studies(options.folders, options.configs):
            parts = config.report(load_result(folder / "summary.json")["results"])
            for drawing in (part for part in parts if isinstance(part, Drawing)):
                drawing.draw(folder / drawing.file)
                print(folder / drawing.file)


def studies(folders: Sequence[Path], configs: Path) -> list[tuple[Path, Study]]:
    """Return the folders that a study's summary stands in, each with its config.

    Raises:
      ValueError: if none is one.
    """
    named = [(folder, configs / f"{folder.name}.py") for folder in folders if (folder / "summary.json").exists()]
    found = [(folder, load_config(config, object)) for folder, config in named if config.exists()]
    pairs = [(folder, config) for folder, config in found if isinstance(config, Study)]
    if not pairs:
        raise ValueError(f"No folder has a summary.json and the name of a config in {configs}: {', '.join(map(str, folders))}.")
    return pairs


if __name__ == "__main__":
    main()
