"""What removing channels gains on ONNX Runtime, by what the channels that are left are a multiple of.

    python -m experiments.benchmarks.channel_rounding --out experiments/results/channel_rounding.md

30 % of the parameters of nets of three convolutions go. Processor time on one core by `deploy.gate`, against the whole net.
"""

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import arguments, origin, publish
from experiments.common.tables import Lines, markdown_table
from lepton_jax import Model, deploy
from lepton_jax.models import CNN
from lepton_jax.pruning import channels

NETS = {"16, 32, 64": ((16, 32, 64), 28), "32, 64, 128": ((32, 64, 128), 28), "64, 128, 256": ((64, 128, 256), 16)}
"""Name -> channels of the convolutions, and the side of the images."""
_LAYERS = ("Conv_0", "Conv_1", "Conv_2")


def main() -> None:
    """Measure all nets."""
    options = arguments(
        __doc__,
        out=True,
        batches=([1, 16], "images a call"),
        multiples=([1, 4, 8, 16], "what channels are a multiple of"),
        rounds=(15, "of each gate"),
    )
    cells: Lines = [("whole", "a multiple of", "left", *(f"times as fast, {batch}" for batch in options.batches), "A/A")]
    for name, (features, side) in NETS.items():
        net = CNN(features=features)
        x = jnp.asarray(np.random.default_rng(0).random((max(options.batches), side, side, 1)), jnp.float32)
        variables = net.init(jax.random.key(0), x[:1])
        with tempfile.TemporaryDirectory() as folder:
            files = {0: Path(folder) / "whole.onnx"}
            deploy.save(Model(net.apply, variables, (x[:1],)), files[0])
            left = {}
            for multiple in options.multiples:
                made = channels.plan(net.apply, variables, x[:1], fraction=0.3, of="parameters", round_to=multiple)
                small = jax.tree.map(jnp.asarray, made.shrink(variables))
                files[multiple] = Path(folder) / f"{multiple}.onnx"
                deploy.save(Model(made.rewrite(net.apply), small, (x[:1],)), files[multiple])
                left[multiple] = ", ".join(str(small["params"][layer]["kernel"].shape[-1]) for layer in _LAYERS)
            runs = {multiple: deploy.runner(file) for multiple, file in files.items()}
            gates = [
                deploy.gate({str(m): partial(run, np.asarray(x[:batch])) for m, run in runs.items()}, options.rounds)
                for batch in options.batches
            ]
        again = ", ".join(f"{gate.again[0]:.2f}" for gate in gates)
        for multiple in options.multiples:
            ratios = [gate.ratios[str(multiple)] for gate in gates]
            said = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in ratios]
            cells.append((name, str(multiple), left[multiple], *said, again))
    lines = ["# Channels left, and time on ONNX Runtime", "", origin("channel_rounding"), ""]
    publish([*lines, *markdown_table(cells)], options.out)


if __name__ == "__main__":
    main()
