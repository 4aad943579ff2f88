"""``lepton inspect``: where a file's bytes went."""

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lepton_jax.artifact import ArtifactError, account, container, load
from lepton_jax.artifact.reading import read_manifest
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core.errors import one_line
from lepton_jax.core.foreign_text import shown

_LONGEST = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show where a file's bytes went, and what its program takes.

    Per tensor and in total, with all ratios; and what the file says about itself. Of an ONNX file its operators, inputs and
    outputs, and its variables under their names here and there.

    Examples:
      lepton inspect model.lepton
      lepton inspect model.onnx
      lepton inspect model.lepton --json | jq .total
    """

    file: Positional[Path]
    """The .lepton or .onnx file."""
    json: bool = False
    """Print JSON: the fields and figures of lepton_jax.Account, and what the file says about itself."""

    def answer(self) -> Answer:
        if self.file.suffix.lower() == ".onnx":
            from lepton_jax.command_line.inspect_onnx import inspect_onnx  # a package that not everybody has

            return inspect_onnx(self.file)
        figures = account(self.file)
        parsed = container.parse(container.read(self.file), str(self.file))
        manifest = read_manifest(parsed, str(self.file))
        about: dict[str, Any] = {"version": ".".join(map(str, parsed.version)), "batch": "symbolic", "bits": "exact"}
        about |= {name: value for name, value in manifest.items() if name != "tree"}
        about["native"] = "native" in manifest  # there, it is a place in the file
        about["inputs"] = _inputs(self.file)
        tensors = [_figures(tensor) for tensor in figures.tensors]
        text = "\n".join([str(figures), *(f"{shown(name)}: {shown(value, _LONGEST)}" for name, value in about.items())])
        return Answer(_figures(figures) | {"tensors": tensors, "about": about}, text)


def _inputs(file: Path) -> dict[str, str] | str:
    """What the program takes, or why nobody knows."""
    try:
        return load(file).inputs
    except ArtifactError as error:
        return f"unknown: {one_line(error)}"


def _figures(value: Any) -> dict[str, Any]:
    """The fields and the properties of a record."""
    names = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
    names += [field.name for field in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names}
