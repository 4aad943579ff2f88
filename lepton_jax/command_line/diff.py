"""``lepton diff``: what two files' tensors have not in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from lepton_jax.command_line.compare import compare, comparison
from lepton_jax.command_line.console import DIFFERENT, OK, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff:
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
    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        from lepton_jax.interchange import load_variables
        from lepton_jax.interchange.names import to_named

        differences = compare(*(to_named(load_variables(path))[0] for path in (self.a, self.b)))
        different = [one for one in differences if not one.same]
        sizes = [_size(path) for path in (self.a, self.b)]
        if self.json:
            tensors = [dataclasses.asdict(one) | {"same": one.same} for one in differences]
            print(as_json({"same": not different, "file_bytes": sizes, "tensors": tensors}))
        else:
            if different or self.all:
                print(comparison(differences if self.all else different))
            print(f"{len(different)} of {len(differences)} tensors differ; files of {sizes[0]} and {sizes[1]} bytes")
        return DIFFERENT if different else OK


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
