"""``lepton unpack``: the dense tensors of a file, for other programs."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.artifact import load
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.command_line.convert import written
from lepton_jax.interchange import save_variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unpack(Command):
    """Write the dense tensors of a file as .safetensors or .npz.

    Examples:
      lepton unpack model.lepton model.safetensors
      lepton unpack model.lepton model.npz
    """

    file: Positional[Path]
    """The .lepton file."""
    out: Positional[Path]
    """A .safetensors or .npz file to write."""

    def answer(self) -> Answer:
        count = save_variables(self.out, load(self.file, progress=True).variables)
        return written(self.file, self.out, count, f" (the file had {self.file.stat().st_size})")
