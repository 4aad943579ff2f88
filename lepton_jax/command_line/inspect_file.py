"""``lepton inspect``: where a file's bytes went."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lepton_jax.artifact import Account, account, artifact, container
from lepton_jax.command_line.console import OK, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show where a file's bytes went.

    Per tensor and in total, with all ratios; and what the file says about itself.

    Examples:
      lepton inspect model.lepton
      lepton inspect model.lepton --json | jq .total
    """

    file: Positional[Path]
    """The .lepton file."""
    json: bool = False
    """Print JSON: the fields and figures of lepton_jax.Account, and what the file says about itself."""

    def __call__(self) -> int:
        figures = account(self.file)
        parsed = container.parse(container.read(self.file), str(self.file))
        manifest = artifact.read_manifest(parsed, str(self.file))
        about: dict[str, Any] = {"version": ".".join(map(str, parsed.version)), "batch": "symbolic"}
        about |= {name: value for name, value in manifest.items() if name != "tree"}
        about["native"] = "native" in manifest  # there, it is a place in the file
        if self.json:
            print(as_json({**_figures(figures), "about": about}))
        else:
            print(figures)
            print("\n".join(f"{name}: {value}" for name, value in about.items()))
        return OK


def _figures(figures: Account) -> dict[str, Any]:
    """The fields and the properties of an account and of its tensors."""
    out = _properties(figures) | {field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)}
    fields = [dataclasses.asdict(tensor) | _properties(tensor) for tensor in figures.tensors]
    return out | {"tensors": fields}


def _properties(value: Any) -> dict[str, Any]:
    names = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
    return {name: getattr(value, name) for name in names}
