"""The journal of a search: many processes write to it, any of which may be killed at any moment."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

from lepton_jax.core.errors import one_line
from lepton_jax.core.extras import import_extra
from lepton_jax.core.locks import free, lock, unlock

_STUDY = "search"
_PAUSE = 0.002


@contextlib.contextmanager
def turn(file: File) -> Iterator[None]:
    """Wait for a file's lock, and have it; it ends with the process, however that ends."""
    opened = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        while lock(file, opened) is None:
            time.sleep(_PAUSE)
        yield
    finally:
        unlock(opened)


class Journal:
    """A study of Optuna in a file.

    Args:
      file: the journal; made if it is not there.
      about: what the study is of, as text.
      directions: how many objectives, all to be made least.

    Raises:
      ImportError: if Optuna is not installed; says how to.
      ValueError: for the journal of another study, or what is no journal.
    """

    def __init__(self, file: str | os.PathLike[str], about: str, directions: int = 1) -> None:
        self.optuna = import_extra("optuna", "tune")
        self.file = File(file)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._mine: tuple[str, int | None] = ("", None)
        with self.quiet(), self.turn():
            self.study = self._opened(about, directions)

    def _opened(self, about: str, directions: int) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        other = f"search: {self.file} is the journal of another study; name another file, or delete it."
        try:
            held: Any = _Lock(self.file)
            storage = JournalStorage(JournalFileBackend(str(self.file), lock_obj=held))
            names = [study.study_name for study in storage.get_all_studies()]
            if names not in ([], [_STUDY]):
                raise ValueError(other)
            made = {"storage": storage, "study_name": _STUDY, "load_if_exists": True}
            study = self.optuna.create_study(directions=["minimize"] * directions, **made)
        except ValueError as error:
            raise ValueError(
                other if str(error) == other else f"search: {self.file} is no journal: {one_line(error)}"
            ) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"search: {self.file} is no journal: {one_line(error)}") from error
        if study.user_attrs.setdefault("about", about) != about or len(study.directions) != directions:
            raise ValueError(other)
        study.set_user_attr("about", about)
        return study

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep Optuna from printing, and from warning that what is used here is new."""
        import warnings

        levels, before = self.optuna.logging, self.optuna.logging.get_verbosity()
        levels.set_verbosity(levels.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
                yield
        finally:
            levels.set_verbosity(before)

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Only one process at a time looks at what is to be done, and takes a trial."""
        return turn(self._beside("turn"))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Be known as a process that lives."""
        folder = self._beside("workers")
        folder.mkdir(exist_ok=True)
        name = uuid.uuid4().hex
        (folder / name).touch()
        self._mine = name, lock(folder / name)
        try:
            yield
        finally:
            unlock(self._mine[1])
            (folder / name).unlink(missing_ok=True)

    def taken(self, trial: Any) -> None:
        """Note that this process runs a trial."""
        trial.set_user_attr("worker", self._mine[0])

    def count(self, *states: str) -> int:
        """Return how many trials are in these states."""
        return len(self.trials(*states))

    def trials(self, *states: str) -> list[Any]:
        """Return the trials that are in these states."""
        kinds = [self.optuna.trial.TrialState[state] for state in states]
        return list(self.study.get_trials(deepcopy=False, states=kinds))

    def put_back(self) -> int:
        """Give up the trials whose process has ended, and have their settings tried again; call it in a `turn`."""
        lost = [trial for trial in self.trials("RUNNING") if not self._lives(trial.user_attrs.get("worker", ""))]
        for trial in lost:
            if trial.params:
                self.study.enqueue_trial(trial.params)
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
        return len(lost)

    def _lives(self, worker: str) -> bool:
        file = self._beside("workers") / worker
        return bool(worker) and file.is_file() and (worker == self._mine[0] or not free(file))

    def _beside(self, what: str) -> File:
        return self.file.with_name(f"{self.file.name}.{what}")


class _Lock:
    """A lock of the journal that a killed process does not keep; a line that it left half written goes."""

    def __init__(self, file: File) -> None:
        self._file, self._held = file, contextlib.ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(turn(self._file))
        with open(self._file, "rb+") as journal:
            text = journal.read()
            if text and not text.endswith(b"\n"):
                journal.truncate(text.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._held.close()
