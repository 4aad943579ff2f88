"""Where metrics go besides a file of JSON lines: TensorBoard, Weights & Biases, or several places at once."""

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra

_EVENTS = "events.out.tfevents.*"


class Writer(Protocol):
    """What the training loop asks of whatever takes its metrics; `MetricsWriter` is one."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take one row."""

    def rewind(self, step: int) -> None:
        """Forget what was written of later steps, since the run goes on from this one."""

    def close(self) -> None:
        """Finish what is still open; a second call does nothing."""


@checked
class Writers:
    """Give every row to several writers, in their order.

    Args:
      *writers: e.g. a `MetricsWriter` and a `TensorBoardWriter`.

    Example:
      >>> import tempfile
      >>> from lepton_jax.training import MetricsWriter, read_metrics
      >>> one, other = (Path(tempfile.mkdtemp()) / "metrics.jsonl" for _ in range(2))
      >>> Writers(MetricsWriter(one), MetricsWriter(other)).write(10, {"loss": 0.5})
      >>> read_metrics(one) == read_metrics(other)
      True
    """

    def __init__(self, *writers: Writer) -> None:
        self.writers = writers

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Give one row to all."""
        for writer in self.writers:
            writer.write(step, values)

    def rewind(self, step: int) -> None:
        """Rewind all."""
        for writer in self.writers:
            writer.rewind(step)

    def close(self) -> None:
        """Close all."""
        for writer in self.writers:
            writer.close()


@checked
class TensorBoardWriter:
    """Write scalars as TensorBoard's event files, each row flushed as it is written.

    Tags name a folder each, so that TensorBoard shows phases as runs of their own. Event files are only ever appended to: a
    rewind writes the mark that makes TensorBoard hide all later steps of that folder.

    Args:
      folder: of the run; made, when there is something to write.
      **tags: subfolders, e.g. ``phase="prune"``.

    Raises:
      ImportError: if tensorboardX is not installed.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> writer = TensorBoardWriter(folder, phase="dense")
      >>> writer.write(10, {"loss": 0.5})
      >>> writer.close()
      >>> [file.relative_to(folder).parts[0] for file in folder.rglob("events.out.tfevents.*")]
      ['dense']
    """

    def __init__(self, folder: str | os.PathLike[str], **tags: str) -> None:
        self.folder = Path(folder, *tags.values())
        # Not its SummaryWriter: that one writes in a thread of its own, so that what is flushed need not be in the file.
        import_extra("tensorboardX", "tensorboard")
        self._files = importlib.import_module("tensorboardX.event_file_writer")
        self._protocol = importlib.import_module("tensorboardX.proto.event_pb2")
        self._open: Any = None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row, a scalar a value."""
        event = self._protocol.Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=float(value))
        self._add(event)

    def rewind(self, step: int) -> None:
        """Hide all steps after `step`, if there are event files already."""
        if any(self.folder.glob(_EVENTS)):
            self.close()
            began = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
            self._add(self._protocol.Event(wall_time=time.time(), step=step + 1, session_log=began))

    def close(self) -> None:
        """Close the event file; a later row opens a new one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _add(self, event: Any) -> None:
        if self._open is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Names have whole seconds, and a resumed run may begin within one.
            number = len(list(self.folder.glob(_EVENTS)))
            self._open = self._files.EventsWriter(str(self.folder / "events"), f".{number}")
        self._open.write_event(event)
        self._open.flush()


@checked
class WandbWriter:
    """Log rows to a run of Weights & Biases.

    Tags stand before the names, ``prune/loss``, and every such group has a step of its own for its x axis, since phases count
    their steps anew. What was logged cannot be taken back: a resumed run logs the steps since its last checkpoint once more,
    with the same values.

    Args:
      run: from ``wandb.init``; it stays the caller's, who finishes it.
      **tags: e.g. ``phase="prune"``.

    Example:
      >>> class Run:  # as much of wandb's as is used
      ...     def define_metric(self, name, step_metric=None):
      ...         print(name, "over", step_metric)
      ...
      ...     def log(self, row):
      ...         print(row)
      >>> WandbWriter(Run(), phase="dense").write(10, {"loss": 0.5})
      dense/* over dense/step
      {'dense/step': 10, 'dense/loss': 0.5}
    """

    def __init__(self, run: Any, **tags: str) -> None:
        self.run = run
        self.prefix = "".join(f"{tag}/" for tag in tags.values())
        run.define_metric(f"{self.prefix}*", step_metric=f"{self.prefix}step")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log one row."""
        self.run.log({f"{self.prefix}step": step, **{self.prefix + name: float(value) for name, value in values.items()}})

    def rewind(self, step: int) -> None:
        """Do nothing: Weights & Biases keeps what it has."""

    def close(self) -> None:
        """Do nothing: the run is the caller's."""
