"""``lepton deploy``: a file's model as a folder that other engines and languages run."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from lepton_jax.artifact import load
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.deploy.folder import write_folder
from lepton_jax.interchange.npz import read_npy

_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deploy(Command):
    """Write a folder with the model as an ONNX file, and an example in each language that runs it.

    In Python, C++, Java and Node, or as a web page. With --calibrate, weights and activations are put into eight bits.

    Examples:
      lepton deploy model.lepton --to onnx
      lepton deploy model.lepton --to html --out page --calibrate images.npy
    """

    file: Positional[Path]
    """The .lepton file."""
    to: Literal["onnx", "html"] = "onnx"
    """What runs it: programs, or a web page."""
    out: Path | None = None
    """The folder; by default the file's name with .deploy in place of .lepton."""
    calibrate: tuple[Path, ...] = ()
    """A .npy file of examples for each input: ranges for eight bits are found on them."""

    def answer(self) -> Answer:
        folder = self.out or self.file.with_suffix(".deploy")
        model = load(self.file, progress=True)
        arrays = [read_npy(path) for path in self.calibrate]
        names = write_folder(model, folder, self.to, batches=_batches(arrays), title=self.file.stem)
        sizes = {name: (folder / name).stat().st_size for name in names}
        lines = [f"{folder}:", *(f"  {name}: {size} bytes" for name, size in sizes.items())]
        return Answer({"folder": str(folder), "files": sizes}, "\n".join(lines))


def _batches(arrays: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    if not arrays:
        return []
    lengths = sorted({array.shape[0] if array.shape else 0 for array in arrays})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"--calibrate needs examples of one number for every input; got {lengths}.")
    return [tuple(array[start : start + _BATCH] for array in arrays) for start in range(0, lengths[0], _BATCH)]
