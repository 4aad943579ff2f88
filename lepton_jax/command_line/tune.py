"""``lepton tune``: a file's model by the best recipe within a budget, as another file."""

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lepton_jax.artifact import load, save
from lepton_jax.command_line.batches import batches_of
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.tuning import tune


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tune(Command):
    """Find the best bits, zeros and ranks for every layer within a budget, and write the compressed model.

    Nothing is trained, and no labels are needed: how far the outputs move on the examples is measured.

    Examples:
      lepton tune model.lepton --data images.npy --bytes 50kB
      lepton tune model.lepton --data images.npy --loss 0.5% --out small.lepton --picture layers.png
    """

    file: Positional[Path]
    """The .lepton file."""
    data: tuple[Path, ...]
    """A .npy file of examples for each input; a few hundred are enough."""
    bytes: str | None = None
    """The most that all tensors may take in the file: 50kB, 1.5MB, or a number."""
    macs: float | None = None
    """The most multiply-accumulates of a call on 64 examples."""
    file_bytes: str | None = None
    """The most that the whole file may take, its program too."""
    latency: float | None = None
    """The most seconds of processor time of a call on 64 examples, by ONNX Runtime on one core."""
    loss: str | None = None
    """What may be lost: 0.5% of the answers, or a KL divergence in nats."""
    out: Path | None = None
    """The file to write; by default the name with -tuned before the suffix."""
    picture: Path | None = None
    """Where to draw what every choice does to every layer, .png, .svg or .pdf."""
    recipe: Path | None = None
    """Where to write the recipe as JSON."""

    def answer(self) -> Answer:
        out = self.out or self.file.with_name(f"{self.file.stem}-tuned{self.file.suffix}")
        model = load(self.file, progress=True)
        loss = self.loss if self.loss is None or self.loss.endswith("%") else float(self.loss)
        batches = batches_of(self.data, "--data")
        names = ("bytes", "macs", "file_bytes", "latency")
        limits: dict[str, Any] = {name: getattr(self, name) for name in names}
        found = tune(model.apply, model.variables, batches, loss=loss, **limits)
        recipe = {"applied": found.recipe.lines, "measured": found.recipe.measured, "changed": found.changed}
        save(out, found.recipe.rewrite(model.apply), found.variables, *batches[0], recipe=recipe)
        if self.picture is not None:
            found.table.draw(self.picture)
        if self.recipe is not None:
            self.recipe.write_text(found.recipe.to_json())
        sizes = {"before": self.file.stat().st_size, "after": out.stat().st_size}
        lines = [str(found), f"{out}: {sizes['after']:,} bytes, {self.file}: {sizes['before']:,}"]
        return Answer({"file": str(out), "bytes": sizes, **recipe}, "\n".join(lines))
