"""Where a run's metrics go besides its `metrics.jsonl`."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lepton_jax.core.files import write_text
from lepton_jax.training import MetricsWriter, TensorBoardWriter, WandbWriter, Writer, Writers, import_extra, multihost

Place = Literal["tensorboard", "wandb"]
MODULES: dict[Place, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What each place needs; the extra that installs it has the place's name."""
PROJECT = "lepton_jax"


def check(places: Sequence[Place]) -> None:
    """Raise unless all that the places need is installed.

    Raises:
      ImportError: with the command that installs it.
    """
    for place in places:
        import_extra(MODULES[place], place)


class Logs:
    """All that is written of one run as it trains; a context, which closes what it opened.

    Weights & Biases is used as its own settings say: ``WANDB_MODE=offline`` keeps everything in the run folder.

    Args:
      run_dir: gets `metrics.jsonl`, and a folder for every place.
      name: of the run.
      config: as JSON.
      places: besides `metrics.jsonl`.
    """

    def __init__(self, run_dir: Path, name: str, config: Any, places: Sequence[Place] = ()) -> None:
        self.run_dir, self.places = run_dir, places if multihost.is_first() else ()
        self._run = _wandb_run(run_dir, name, config) if "wandb" in self.places else None
        self._writers: list[Writer] = []

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        if self._run is not None:
            self._run.finish()

    def phase(self, name: str) -> Writer:
        """Return the writer of one phase."""
        writers: list[Writer] = [MetricsWriter(self.run_dir / "metrics.jsonl", phase=name)]
        if "tensorboard" in self.places:
            writers.append(TensorBoardWriter(self.run_dir / "tensorboard", phase=name))
        if self._run is not None:
            writers.append(WandbWriter(self._run, phase=name))
        self._writers += writers
        return Writers(*writers)


def _wandb_run(run_dir: Path, name: str, config: Any) -> Any:
    """Open the run, the same one when the folder's run is resumed."""
    wandb = import_extra("wandb", "wandb")
    path = run_dir / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, uuid.uuid4().hex)
    return wandb.init(project=PROJECT, name=name, id=path.read_text(), resume="allow", dir=str(run_dir), config=config)
