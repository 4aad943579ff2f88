"""``lepton convert``: variables from one kind of file to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.artifact import load, save
from lepton_jax.command_line.console import OK, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert variables between .safetensors, .npz, orbax checkpoints (only read) and .lepton.

    A .lepton file holds a program, which weights alone do not give: name one of the same network by --program, and its
    program is taken. From Python: lepton_jax.save(path, apply, lepton_jax.interchange.load_orbax(folder), example).

    Examples:
      lepton convert run/checkpoints weights.safetensors
      lepton convert finetuned.safetensors finetuned.lepton --program model.lepton
    """

    file: Positional[Path]
    """A .lepton, .safetensors or .npz file, or the folder of an orbax checkpoint."""
    out: Positional[Path]
    """A .safetensors, .npz or .lepton file to write."""
    program: Path | None = None
    """A .lepton file of the same network, whose program a .lepton file shall have."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        from lepton_jax.interchange import load_variables
        from lepton_jax.interchange.checkpoint import save_variables
        from lepton_jax.interchange.names import to_named

        if (self.out.suffix == ".lepton") != (self.program is not None):
            raise ValueError("--program and an output .lepton go together: weights alone do not say how they are used.")
        if self.program is not None:
            donor = load(self.program, progress=True)
            tree = load_variables(self.file, donor.variables)
            save(self.out, donor.apply, tree, *donor.example_inputs)
            count = len(to_named(tree)[0])
        else:
            count = save_variables(self.out, load_variables(self.file))
        size = self.out.stat().st_size
        facts = {"file": str(self.file), "out": str(self.out), "tensors": count, "bytes": size}
        print(as_json(facts) if self.json else f"{self.out}: {count} tensors, {size} bytes")
        return OK
