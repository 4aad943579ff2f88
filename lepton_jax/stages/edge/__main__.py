"""Serve the cloud's half of a cut model until the standard input ends: ``python -m lepton_jax.stages.edge FILE [TIMEOUT]``.

The port is printed, alone on a line. ``lepton edge serve`` is the same for people.
"""

import sys

from lepton_jax.stages.edge.serve import served
from lepton_jax.stages.serving.processes import run_until_input_ends


def main() -> None:
    """Load, say where, and serve."""
    run_until_input_ends(served(sys.argv[1], timeout=float(sys.argv[2]) if len(sys.argv) > 2 else 60.0))


if __name__ == "__main__":
    main()
