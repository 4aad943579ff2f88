"""A simulated quantum circuit as a layer, against classical layers of as many parameters, a random circuit, and none.

    python -m experiments.quantum --seeds 5
    python -m experiments.quantum --seeds 5 --only quantum classical none
    python -m experiments.quantum --max-steps 2 --run-dir runs/trial
    python -m experiments.quantum --seeds 5 --resume

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.quantum import Quantum

main = script(__doc__, "quantum.py", Quantum)

if __name__ == "__main__":
    main()
