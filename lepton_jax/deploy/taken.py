"""What engines say of files that they do not take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from lepton_jax.core.errors import ArtifactError, one_line


@contextlib.contextmanager
def taken(engine: str, file: str | os.PathLike[str] | bytes, name: str) -> Iterator[None]:
    """Raise an `ArtifactError` for whatever an engine raises within, of one line with the file.

    Example:
      >>> try:
      ...     with taken("LiteRT", "m.tflite", "deploy"):
      ...         raise RuntimeError("no model")
      ... except ArtifactError as error:
      ...     print(error)
      deploy: LiteRT does not take m.tflite: no model
    """
    try:
        yield
    except Exception as error:  # whatever the engine raises
        shown = "the file" if isinstance(file, bytes) else os.fspath(file)
        raise ArtifactError(f"{name}: {engine} does not take {shown}: {one_line(error)}") from error
