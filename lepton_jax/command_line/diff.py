"""``lepton diff``: what two files' tensors have not in common."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.command_line.compare import compare, comparison, named
from lepton_jax.command_line.console import DIFFERENT, OK, Answer, Command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff(Command):
    """Compare the tensors of two files: shapes, dtypes, bytes, changed elements, the largest difference.

    Ends with 1 if they differ.

    Examples:
      lepton diff before.lepton after.lepton
      lepton diff model.lepton weights.safetensors --all
    """

    a: Positional[Path]
    """A .lepton, .safetensors or .npz file, or the folder of an orbax checkpoint."""
    b: Positional[Path]
    """Another."""
    all: bool = False
    """Show tensors that are the same, too."""

    def answer(self) -> Answer:
        differences = compare(named(self.a), named(self.b))
        different = [one for one in differences if not one.same]
        sizes = [_size(path) for path in (self.a, self.b)]
        tensors = [dataclasses.asdict(one) | {"same": one.same} for one in differences]
        shown = differences if self.all else different
        lines = [comparison(shown)] if shown or self.all else []
        lines += [f"{len(different)} of {len(differences)} tensors differ; files of {sizes[0]} and {sizes[1]} bytes"]
        facts = {"same": not different, "file_bytes": sizes, "tensors": tensors}
        return Answer(facts, "\n".join(lines), DIFFERENT if different else OK)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
