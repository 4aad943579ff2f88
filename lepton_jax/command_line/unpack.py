"""``lepton unpack``: the dense tensors of a file, for other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.artifact import load
from lepton_jax.command_line.console import OK, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unpack:
    """Write the dense tensors of a file as .safetensors or .npz.

    Examples:
      lepton unpack model.lepton model.safetensors
      lepton unpack model.lepton model.npz
    """

    file: Positional[Path]
    """The .lepton file."""
    out: Positional[Path]
    """A .safetensors or .npz file to write."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        from lepton_jax.interchange.checkpoint import save_variables

        tree = load(self.file, progress=True).variables
        count = save_variables(self.out, tree)
        size = self.out.stat().st_size
        if self.json:
            print(as_json({"file": str(self.file), "out": str(self.out), "tensors": count, "bytes": size}))
        else:
            print(f"{self.out}: {count} tensors, {size} bytes (the file had {self.file.stat().st_size})")
        return OK
