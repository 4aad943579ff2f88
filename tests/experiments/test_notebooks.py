"""The notebooks: they run as they are, in a moment; they hold no logic, and nothing of the machine they were made on.

Their cells are plain Python but for the install cell, so they are executed here, in a namespace of their own, instead of in a
kernel: no process to start, no second import of jax, and conftest's rules (warnings are errors) hold for them too.
"""

import ast
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

from experiments import colab

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "notebooks"
COLAB = ("deployment", "end_to_end", "language_model", "low_rank_and_distillation", "pruning", "quantization")
"""Those that Colab can install from an address."""
FAMILIES = (*COLAB, "foreign_models", "single_point")
# Folders of somebody's machine, and addresses in the memory of a process.
OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|var|opt|usr|mnt|work|content)/|\b[A-Z]:\\|0x[0-9a-f]{6,}")


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return read(name)


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """A short run: few steps, no window, and nothing left behind."""
    monkeypatch.setenv("LEPTON_SMOKE", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    plt.close("all")
    matplotlib.use(backend)


def test_all_cells_run(name, notebook, smoke):
    namespace, figures = {"__name__": "__main__"}, 0
    for cell in code_cells(notebook):
        exec(compile(cell.source, f"{name}.ipynb, cell {cell.id}", "exec"), namespace)
        for number in plt.get_fignums():
            check_labelled(plt.figure(number), cell.id)
            figures += 1
        plt.close("all")
    assert figures >= 2


def test_is_valid_and_was_run(notebook):
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 2


def test_holds_no_logic_of_its_own(notebook):
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While, ast.Try)
        assert not [node for node in ast.walk(tree) if isinstance(node, kinds)], cell.source
        assert not re.search(r"value_and_grad|apply_updates|\bgrad\(", cell.source), "training is the library's: fit"


def test_output_is_clean_and_small(name, notebook):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"
        for text in (cell.source, *texts(cell)):
            assert not OF_A_MACHINE.search(text), f"{cell.id}: {OF_A_MACHINE.search(text)}"


@pytest.mark.parametrize("name", COLAB)
def test_install_cell_installs_this_package(name):
    [cell] = [cell for cell in read(name).cells if is_install(cell)]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "%pip install" in cell.source
    assert f'"{pyproject["name"]}[experiments] @ {{REPOSITORY}}"' in cell.source.replace('f"', '"')
    assert (FOLDER / "../.." / "pyproject.toml").exists()  # "../.." is the checkout that it installs otherwise
    assert '"../..[experiments]"' in cell.source
    address = pyproject.get("urls", {}).get("Repository", "")
    assert f'REPOSITORY = "{address and f"git+{address}"}"\n' in cell.source


@pytest.mark.parametrize("name", COLAB)
def test_has_a_badge_and_says_what_it_runs_on(name):
    cells = read(name).cells
    badge = re.search(r"\[!\[Open in Colab\]\((.+)/assets/colab-badge\.svg\)\]\((.+)\)", cells[0].source)
    assert badge.group(1) == "https://colab.research.google.com"
    assert badge.group(2).startswith("https://colab.research.google.com/")
    assert re.search(r"Measured: \d+ seconds of processor time.* on CPU", cells[0].source)
    [device] = [cell for cell in cells if "data_mesh()" in cell.source]
    assert "bfloat16" in device.source
    [said] = [output["text"] for output in device.outputs]
    assert re.search(r"on \d+ x cpu: trains in float32", said)


def test_the_address_is_written_into_every_notebook(tmp_path):
    for name in COLAB:
        shutil.copy(FOLDER / f"{name}.ipynb", tmp_path)
    colab.write("https://github.com/someone/something", tmp_path)
    for name in COLAB:
        text = (tmp_path / f"{name}.ipynb").read_text()
        link = f"https://colab.research.google.com/github/someone/something/blob/main/experiments/notebooks/{name}.ipynb"
        assert link in text
        assert 'REPOSITORY = \\"git+https://github.com/someone/something\\"' in text
    colab.write("", tmp_path)
    for name in COLAB:
        assert (tmp_path / f"{name}.ipynb").read_bytes() == (FOLDER / f"{name}.ipynb").read_bytes()


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def is_install(cell):
    return "install" in cell.metadata.get("tags", [])


def code_cells(notebook):
    """All cells of Python; that of the installation has a line that is none."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and not is_install(cell)]


def texts(cell):
    """What a cell put out, but for pictures."""
    for output in cell.get("outputs", []):
        yield from (str(value) for kind, value in output.get("data", {}).items() if kind != "image/png")
        yield output.get("text", "")


def check_labelled(figure, cell):
    """Every plot has a title, and names both axes; those in a row share the first one's."""
    plots = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    for axis in plots:
        assert axis.get_title() or figure.get_suptitle(), f"{cell}: a plot without a title"
        assert axis.get_xlabel(), f"{cell}: a horizontal axis without a name"
    assert plots[0].get_ylabel() or plots[0].get_yticklabels()[0].get_text(), f"{cell}: a vertical axis without a name"
