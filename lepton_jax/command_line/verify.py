"""``lepton verify``: whether a file is whole and holds what it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lepton_jax.artifact import account, load
from lepton_jax.command_line.compare import Difference, compare, comparison
from lepton_jax.command_line.console import DIFFERENT, OK, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Check that a file is whole and, with a reference, that it holds what it should.

    Checksums, every tensor decoded, the program read, all bytes accounted for; every element compared with the reference.
    Ends with 1 if the file is damaged or differs from the reference.

    Examples:
      lepton verify model.lepton
      lepton verify model.lepton --reference weights.safetensors
      lepton verify model.lepton --reference run/checkpoints --tolerance 0.01
    """

    file: Positional[Path]
    """The .lepton file."""
    reference: Path | None = None
    """What it must hold: a .lepton, .safetensors or .npz file, or the folder of an orbax checkpoint, of the same names."""
    tolerance: float = 0.0
    """The largest difference allowed; 0: every bit must be the same."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance must be 0 or more; got {self.tolerance}.")

    def __call__(self) -> int:
        loaded = load(self.file, progress=True)
        figures = account(self.file)
        facts: dict[str, Any] = {
            "file": str(self.file),
            "bytes": figures.total,
            "tensors": len(figures.tensors),
            "parameters": figures.parameters,
            "platforms": loaded.manifest["platforms"],  # reads the program
        }
        wrong: list[Difference] = []
        if self.reference is not None:
            from lepton_jax.interchange import load_variables
            from lepton_jax.interchange.names import to_named

            compared = compare(to_named(loaded.variables)[0], to_named(load_variables(self.reference))[0])
            wrong = [one for one in compared if not (one.within(self.tolerance) if self.tolerance else one.same)]
            facts |= {"reference": str(self.reference), "compared": len(compared)}
        if self.json:
            differing = [dataclasses.asdict(one) for one in wrong]
            print(as_json({"ok": not wrong, **facts, "tolerance": self.tolerance, "different": differing}))
        else:
            print(f"{self.file}: whole. {facts['bytes']} bytes, {facts['tensors']} tensors, {facts['parameters']} parameters")
            print(f"its program runs on {', '.join(facts['platforms'])}")
            if wrong:
                print(comparison(wrong))
            if self.reference is not None:
                how = f"within {self.tolerance:g}" if self.tolerance else "bit for bit"
                alike = f"all {facts['compared']} tensors are {how} those of {self.reference}"
                print(f"{len(wrong)} of {facts['compared']} tensors differ from {self.reference}" if wrong else alike)
        return DIFFERENT if wrong else OK
