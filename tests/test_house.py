"""The packages form a tree: nothing imports from its own floor or from one above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("core",),
    ("coding", "formats"),
    ("leaves",),
    ("graph",),
    ("native",),
    ("artifact", "lowrank", "precision", "pruning", "quantization"),
    ("data", "interchange", "training"),
    ("distillation", "models"),
    ("simple",),
    ("command_line",),
    ("_moved",),
    ("__init__", "__main__"),
)
"""From the ground up."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def edges(folder: Path) -> list[tuple[str, str, str]]:
    """Every import that runs when a file of the package is imported or called: (file, from package, to package).

    Names that a module's ``__getattr__`` forwards are no edge.
    """
    found = []
    for file in sorted(folder.rglob("*.py")):
        place = file.relative_to(folder)
        own = place.parts[0] if len(place.parts) > 1 else place.stem
        tree = ast.parse(file.read_text())
        forwards = {id(n) for f in ast.walk(tree) if getattr(f, "name", "") == "__getattr__" for n in ast.walk(f)}
        for node in ast.walk(tree):
            if id(node) in forwards:
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            modules = names if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == "lepton_jax":
                modules = [f"lepton_jax.{name}" for name in names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            targets = [module.split(".")[1] for module in modules if module.startswith("lepton_jax.")]
            found += [(str(place), own, target) for target in targets if target != own]
    return found


def test_every_package_has_a_floor() -> None:
    there = {p.stem for p in (ROOT / "lepton_jax").iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] != "_")}
    assert there == set(FLOOR)


def test_nothing_imports_from_its_own_floor_or_above() -> None:
    wrong = [f"{file}: {own} imports {to}" for file, own, to in edges(ROOT / "lepton_jax") if FLOOR[to] >= FLOOR[own]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line", ["from lepton_jax.pruning import prune", "import lepton_jax.pruning", "from lepton_jax import pruning"]
)
def test_an_import_from_above_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "paths.py").write_text(f"def f():\n    {line}\n")
    assert edges(tmp_path) == [("core/paths.py", "core", "pruning")]
