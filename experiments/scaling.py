"""The same training on 1, 2 and 4 devices of the host and by two processes: losses, masks, times, bytes on the wire.

    python -m experiments.scaling --seeds 3
    python -m experiments.scaling --seeds 3 --only one_device two_processes
    python -m experiments.scaling --max-steps 6 --run-dir runs/trial
    python -m experiments.scaling --seeds 3 --resume

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.scaling import Scaling

main = script(__doc__, "scaling.py", Scaling)

if __name__ == "__main__":
    main()
