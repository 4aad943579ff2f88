"""What `pip install lepton-jax` without an extra must do: compress, save and load, and name the extra of what it cannot do."""

import os
import subprocess
import sys
from pathlib import Path

EXTRAS = (
    *("tyro", "matplotlib", "sklearn", "tensorflow_datasets", "grain", "array_record", "PIL", "importlib_resources"),
    *("onnx", "onnxruntime", "keras", "tensorboardX", "wandb", "torch", "optuna", "pandas"),
)
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(program, *arguments):
    """The ended process, the extras away."""
    command = [sys.executable, "-c", WITHOUT + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=300)


def test_the_core_compresses_saves_and_loads(tmp_path):
    done = run((Path(__file__).parent / "thin_program.py").read_text(), str(tmp_path / "m.lepton"))
    assert done.returncode == 0, done.stderr
    assert "kernel" in done.stdout


def test_what_needs_an_extra_names_it():
    done = run(
        """
import lepton_jax as lepton
from lepton_jax.core import extras

def said(call):
    try:
        call()
    except ImportError as error:
        print(error)

said(lepton.data.load_digits)
said(extras.pyplot)
said(lambda: lepton.deploy.save(lepton.Model(lambda v, x: x, {}, (1.0,)), "m.onnx"))
from lepton_jax.__main__ import main
main()
"""
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{module} is not installed; it is in an extra: pip install 'lepton-jax[{extra}]'."
        for module, extra in (("sklearn", "data"), ("matplotlib", "plots"), ("onnx", "deploy"))
    ]
    assert done.stderr.splitlines() == ["error: tyro is not installed; it is in an extra: pip install 'lepton-jax[cli]'."]
