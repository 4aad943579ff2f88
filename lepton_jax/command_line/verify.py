"""``lepton verify``: whether a file is whole and holds what it should."""

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lepton_jax.artifact import account, load
from lepton_jax.command_line.compare import Difference, compare, comparison, named
from lepton_jax.command_line.console import DIFFERENT, OK, Answer, Command
from lepton_jax.interchange.names import to_named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Command):
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

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance must be 0 or more; got {self.tolerance}.")

    def answer(self) -> Answer:
        loaded, figures = load(self.file, progress=True), account(self.file)
        platforms = loaded.manifest["platforms"]  # reads the program
        facts: dict[str, Any] = {"bytes": figures.total, "tensors": len(figures.tensors), "parameters": figures.parameters}
        lines = [f"{self.file}: whole. " + ", ".join(f"{count} {what}" for what, count in facts.items())]
        lines += [f"its program runs on {', '.join(platforms)}"]
        facts = {"file": str(self.file), **facts, "platforms": platforms}
        wrong: list[Difference] = []
        if self.reference is not None:
            compared = compare(to_named(loaded.variables)[0], named(self.reference))
            wrong = [one for one in compared if not (one.within(self.tolerance) if self.tolerance else one.same)]
            facts |= {"reference": str(self.reference), "compared": len(compared)}
            how = f"within {self.tolerance:g}" if self.tolerance else "bit for bit"
            if wrong:
                lines += [comparison(wrong), f"{len(wrong)} of {len(compared)} tensors differ from {self.reference}"]
            else:
                lines += [f"all {len(compared)} tensors are {how} those of {self.reference}"]
        differing = [dataclasses.asdict(one) for one in wrong]
        facts = {"ok": not wrong, **facts, "tolerance": self.tolerance, "different": differing}
        return Answer(facts, "\n".join(lines), DIFFERENT if wrong else OK)
