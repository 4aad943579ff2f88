"""Serve one stage's file until the standard input ends: ``python -m lepton_jax.stages.serving FILE [TIMEOUT]``.

The port is printed, alone on a line.
"""

import sys
import threading
from pathlib import Path

from lepton_jax.artifact import load
from lepton_jax.stages.serving.frames import model_name
from lepton_jax.stages.serving.server import Server


def main() -> None:
    """Load, say where, and serve."""
    path, timeout = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    server = Server(load(path), model_name(path.read_bytes()), timeout=timeout)

    def wait() -> None:
        sys.stdin.read()  # the parent's end, however it comes, ends this process too
        server.close()

    threading.Thread(target=wait, daemon=True).start()
    print(server.address[1], flush=True)
    server.run()


if __name__ == "__main__":
    main()
