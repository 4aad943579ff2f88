"""One of two processes for test_multihost.py: ``python disagreeing_run.py PROCESS PORT COUNT STEP FOLDER``.

It joins as one of COUNT, says that its newest checkpoint is of a STEP, and opens checkpoints of another run.
"""

import sys

from lepton_jax.training import Checkpoints, multihost


def main(process, port, count, step, folder):
    try:
        multihost.initialize(f"127.0.0.1:{port}", count, process, heartbeat=10, timeout=30)
        assert multihost.from_first("what", process) == 0
        multihost.agree("nothing", None, timeout=20)
        multihost.barrier("here", timeout=20)
        multihost.barrier("here", timeout=20)
        multihost.agree("the newest checkpoint", step, timeout=20)
        Checkpoints(folder, run="mine")
    except (ValueError, TimeoutError, RuntimeError) as error:
        print(f"error: {error}", flush=True)
        sys.exit(3)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
