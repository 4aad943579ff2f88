"""``lepton run``: a file's answers to inputs."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm
from tyro.conf import Positional

from lepton_jax.artifact import Artifact, load
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core import paths
from lepton_jax.core.files import write_atomic
from lepton_jax.core.tables import table
from lepton_jax.interchange import save_npz
from lepton_jax.interchange.npz import read_npy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Run a file's program on inputs; without the model's code.

    Examples:
      lepton run model.lepton --input images.npy --output logits.npy
      lepton run model.lepton --input tokens.npy mask.npy --batch-size 64 --json
    """

    file: Positional[Path]
    """The .lepton file."""
    input: tuple[Path, ...]
    """A .npy file for each input, in order; of the shape and dtype that the program takes."""
    output: Path | None = None
    """Where the outputs go: .npy for a single array, .npz for any; without it, they are only described."""
    batch_size: int = 0
    """Examples at a time; 0: all at once."""
    native: bool = False
    """Run on the packed leaves, if the file was saved for it."""

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise ValueError(f"--batch-size must be 0 or more; got {self.batch_size}.")
        if not self.input:
            raise ValueError("--input needs a .npy file for each input of the program.")
        if self.output is not None and self.output.suffix not in (".npy", ".npz"):
            raise ValueError(f"--output must be a .npy or .npz file; got {self.output}.")

    def answer(self) -> Answer:
        outputs = self._outputs(load(self.file, progress=True), [read_npy(path) for path in self.input])
        named = {path or "output": np.asarray(leaf) for path, leaf in paths.flatten(outputs).items()}
        if self.output is not None and self.output.suffix == ".npz":
            save_npz(self.output, outputs)
        elif self.output is not None:
            if len(named) != 1:
                raise ValueError(f"the program has {len(named)} outputs, {', '.join(named)}; give --output a .npz file.")
            file = io.BytesIO()
            np.save(file, next(iter(named.values())))
            write_atomic(self.output, file.getbuffer())
        facts = [_describe(name, array) for name, array in named.items()]
        cells = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in fact.values()] for fact in facts]
        text = table([list(facts[0]) if facts else ["name"], *cells], left=range(3))
        return Answer({"outputs": facts, "output_file": self.output and str(self.output)}, text)

    def _outputs(self, model: Artifact, inputs: list[np.ndarray]) -> Any:
        run = model.native() if self.native else model
        if not self.batch_size:
            return run(*inputs)
        lengths = sorted({array.shape[0] if array.shape else 0 for array in inputs})
        if len(lengths) != 1 or not lengths[0]:
            raise ValueError(f"--batch-size needs inputs of one length; got lengths {lengths}.")
        starts = range(0, lengths[0], self.batch_size)
        parts = [
            run(*(array[start : start + self.batch_size] for array in inputs))
            for start in tqdm(starts, desc="run", unit="batch", disable=None)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _describe(name: str, array: np.ndarray) -> dict[str, Any]:
    numbers = array.astype(np.float64) if array.size and array.dtype.kind in "biufV" else np.zeros(0)
    low, high, mean = (float(f(numbers)) for f in (np.min, np.max, np.mean)) if numbers.size else [float("nan")] * 3
    shape = "x".join(map(str, array.shape)) or "scalar"
    return {"name": name, "shape": shape, "dtype": array.dtype.name, "min": low, "mean": mean, "max": high}
