"""Modules that moved: their old names are imported still, with a warning, until version 0.3."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_MOVED = {
    "command_line.inspect_file": "command_line.inspect",
    "errors": "core.errors",
    "graph.flow": "graph.origins",
    "hessian": "graph.moments",
    "lowrank.adapted": "lowrank",
    "lowrank.guard": "lowrank",
    "lowrank.ranks.options": "lowrank.ranks.knapsack",
    "models.torch_import": "interchange.torch_resnet",
    "packed": "leaves",
    "packed_blocks": "leaves.block_sparse",
    "packed_sum": "leaves.adapted",
    "packed_tensors": "leaves",
    "paths": "core.paths",
    "precision.decisions": "precision.rules",
    "pruning.channels.cut": "pruning.channels.choose",
    "pruning.channels.iterate": "pruning.channels.rounds",
    "pruning.channels.planning": "pruning.channels.choose",
    "pruning.channels.plans": "pruning.channels.plan",
    "pruning.channels.shrinker": "pruning.channels.shrink",
    "pruning.channels.text": "pruning.channels.plan_text",
    "pruning.channels.verification": "pruning.channels.verify",
    "pruning.iterative": "pruning.rounds",
    "pruning.masking": "pruning.hide",
    "pruning.sparse_training.masked": "pruning.hide",
    "quantization.calibration": "formats.ranges",
    "quantization.collection": "quantization.sites",
    "quantization.entropy": "quantization.entropy_penalty",
    "quantization.formats": "formats",
    "quantization.numerics": "leaves",
    "quantization.simulate": "quantization.activations",
    "quantization.twice_mean": "formats.ranges.twice_mean",
    "schedules": "core.schedules",
    "straight_through": "core.straight_through",
    "transform": "core.transform",
    "typing": "core.typing",
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return importlib.machinery.ModuleSpec(fullname, self) if package == __package__ and name in _MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = f"{__package__}.{_MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}.", DeprecationWarning, stacklevel=2)
        # A module of its own, so that the import system's marks do not overwrite those of the new one.
        module, there = ModuleType(spec.name), importlib.import_module(new)
        vars(module).update({name: value for name, value in vars(there).items() if not name.startswith("__")})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it was made whole."""


def forward() -> None:
    """Let the old names be found, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
