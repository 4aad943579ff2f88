"""The packages form a tree: nothing imports from its own floor or from one above; and modules and functions stay small."""

import ast
import statistics
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
    ("data", "training"),
    ("distillation", "models", "quantum"),
    ("deploy", "stages"),
    ("tuning",),
    ("simple",),
    ("interchange", "recipes"),
    ("command_line",),
    ("_moved",),
    ("__init__", "__main__"),
)
"""From the ground up."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


SIBLINGS = {"training": {"artifact", "lowrank", "pruning", "quantization"}}
"""What is below, and not to be imported nevertheless: training knows transforms, and not which ones there are."""


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


def test_files_of_tests_have_names_of_their_own() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name not in {"conftest.py", "__init__.py"}]
    assert sorted(names) == sorted(set(names))  # pytest imports them by their names alone


def test_every_package_has_a_floor() -> None:
    there = {p.stem for p in (ROOT / "lepton_jax").iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] != "_")}
    assert there == set(FLOOR)


def test_nothing_imports_from_its_own_floor_or_above() -> None:
    wrong = [f"{file}: {own} imports {to}" for file, own, to in edges(ROOT / "lepton_jax") if FLOOR[to] >= FLOOR[own]]
    assert not wrong, "\n".join(wrong)


def test_training_knows_no_technique() -> None:
    wrong = [f"{file}: {own} imports {to}" for file, own, to in edges(ROOT / "lepton_jax") if to in SIBLINGS.get(own, ())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line", ["from lepton_jax.pruning import prune", "import lepton_jax.pruning", "from lepton_jax import pruning"]
)
def test_an_import_from_above_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "paths.py").write_text(f"def f():\n    {line}\n")
    assert edges(tmp_path) == [("core/paths.py", "core", "pruning")]


MODULES = {
    str(file.relative_to(ROOT)): file.read_text()
    for top in ("lepton_jax", "experiments")
    for file in (ROOT / top).rglob("*.py")
}
LONG_MODULES = {
    "lepton_jax/graph/_compat.py",  # the only file that touches what is internal to jax
}
"""Those that may be longer than others."""


def bodies(text: str) -> dict[str, int]:
    """Lines of every function's body, its docstring left out, by name."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            found[node.name] = max(found.get(node.name, 0), node.end_lineno - body[0].lineno + 1 if body else 0)
    return found


def test_most_modules_are_short() -> None:
    assert statistics.median(text.count("\n") for text in MODULES.values()) <= 120


def test_no_module_is_long() -> None:
    lengths = {file: text.count("\n") for file, text in MODULES.items() if file not in LONG_MODULES}
    long = [f"{file}: {lines} lines" for file, lines in sorted(lengths.items()) if lines > 350]
    assert not long, "\n".join(long)


def test_no_body_is_long() -> None:
    all_bodies = [(file, name, lines) for file, text in sorted(MODULES.items()) for name, lines in bodies(text).items()]
    long = [f"{file}: {name} has {lines} lines" for file, name, lines in all_bodies if lines > 60]
    assert not long, "\n".join(long)


def test_a_long_body_is_found() -> None:
    assert bodies('def f():\n    """Says."""\n' + "    x = 1\n" * 61)["f"] == 61
    assert bodies('def f():\n    """Says."""\n')["f"] == 0
