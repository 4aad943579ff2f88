"""Serve one stage's file until the standard input ends: ``python -m lepton_jax.stages.serving FILE [TIMEOUT]``.

The port is printed, alone on a line.
"""

import sys
from pathlib import Path

from lepton_jax.artifact import load
from lepton_jax.stages.serving.frames import model_name
from lepton_jax.stages.serving.processes import run_until_input_ends
from lepton_jax.stages.serving.server import Server


def main() -> None:
    """Load, say where, and serve."""
    path, timeout = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    run_until_input_ends(Server(load(path), model_name(path.read_bytes()), timeout=timeout))


if __name__ == "__main__":
    main()
