"""``lepton deploy``: a file's model as a folder that other engines and languages run."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lepton_jax.artifact import load
from lepton_jax.command_line.batches import batches_of
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core.errors import one_line
from lepton_jax.deploy.folder import write_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deploy(Command):
    """Write a folder with the model as an ONNX or LiteRT file, and examples that run it.

    In Python, C++, Java and Node, with LiteRT, or as a web page. With --calibrate, weights and activations are put into eight
    bits.

    Examples:
      lepton deploy model.lepton --to onnx
      lepton deploy model.lepton --to litert --calibrate images.npy
      lepton deploy model.lepton --to html --out page --calibrate images.npy --labels names.txt
    """

    file: Positional[Path]
    """The .lepton file."""
    to: Literal["onnx", "litert", "html"] = "onnx"
    """What runs it: programs, phones and small boards, or a web page."""
    out: Path | None = None
    """The folder; by default the file's name with .deploy in place of .lepton."""
    calibrate: tuple[Path, ...] = ()
    """A .npy file of examples for each input: ranges for eight bits are found on them."""
    labels: Path | None = None
    """What the page calls each class: a file with a name on each line."""
    vocabulary: Path | None = None
    """A .json file with the number of each word, or character, of the sentences that the page takes; else they are bytes."""

    def answer(self) -> Answer:
        folder = self.out or self.file.with_suffix(".deploy")
        model = load(self.file, progress=True)
        names = write_folder(
            model,
            folder,
            self.to,
            batches=batches_of(self.calibrate, "--calibrate"),
            title=self.file.stem,
            labels=self.labels.read_text(encoding="utf-8").splitlines() if self.labels else (),
            vocabulary=_numbers(self.vocabulary) if self.vocabulary else None,
        )
        sizes = {name: (folder / name).stat().st_size for name in names}
        lines = [f"{folder}:", *(f"  {name}: {size} bytes" for name, size in sizes.items())]
        return Answer({"folder": str(folder), "files": sizes}, "\n".join(lines))


def _numbers(file: Path) -> dict[str, int]:
    """The words of a file with their numbers."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--vocabulary: {file} must be JSON: {one_line(error)}") from error
    if not isinstance(found, dict) or not all(type(number) is int for number in found.values()):
        raise ValueError(f'--vocabulary: {file} must have a number for each word, {{"good": 2, "bad": 3}}.')
    return found
