"""``lepton convert``: variables from one kind of file to another."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.artifact import load, save
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core import paths
from lepton_jax.core.packed import is_packed
from lepton_jax.interchange import load_model, load_variables, save_variables
from lepton_jax.interchange.names import to_named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Convert variables between .safetensors, .npz, orbax checkpoints (only read) and .lepton; and models of .onnx files.

    An .onnx file holds its program: it becomes a .lepton file by itself. For weights alone, which do not say how they are
    used, name a .lepton file of the same network by --program, and its program is taken. From Python: lepton_jax.save(path,
    apply, lepton_jax.interchange.load_orbax(folder), example).

    Examples:
      lepton convert model.onnx model.lepton
      lepton convert run/checkpoints weights.safetensors
      lepton convert finetuned.safetensors finetuned.lepton --program model.lepton
    """

    file: Positional[Path]
    """A .onnx, .lepton, .safetensors or .npz file, or the folder of an orbax checkpoint."""
    out: Positional[Path]
    """A .safetensors, .npz or .lepton file to write."""
    program: Path | None = None
    """A .lepton file of the same network, whose program a .lepton file shall have."""

    def answer(self) -> Answer:
        if self.file.suffix.lower() == ".onnx" and self.program is None:
            model = load_model(self.file)
            if self.out.suffix != ".lepton":
                return written(self.file, self.out, save_variables(self.out, model.variables))
            model.save(self.out)
            return written(self.file, self.out, len(paths.flatten(model.variables, is_packed)))
        if (self.out.suffix == ".lepton") != (self.program is not None):
            raise ValueError("--program and an output .lepton go together: weights alone do not say how they are used.")
        if self.program is not None:
            donor = load(self.program, progress=True)
            tree = load_variables(self.file, donor.variables)
            save(self.out, donor.apply, tree, *donor.example_inputs)
            return written(self.file, self.out, len(to_named(tree)[0]))
        return written(self.file, self.out, save_variables(self.out, load_variables(self.file)))


def written(file: Path, out: Path, tensors: int, note: str = "") -> Answer:
    """Say what was written.

    Args:
      file: what was read.
      out: the new file.
      tensors: how many it holds.
      note: how the text ends.
    """
    size = out.stat().st_size
    facts = {"file": str(file), "out": str(out), "tensors": tensors, "bytes": size}
    return Answer(facts, f"{out}: {tensors} tensors, {size} bytes{note}")
