"""What optimising a net's graph gains, for each kind of operation and for the net whole, beside the papers' claims.

    python -m experiments.graph_optimisation
    python -m experiments.graph_optimisation --only papers_cnn lenet5 --seeds 3
    python -m experiments.graph_optimisation --only papers_cnn --rounds 3 --images 2 --run-dir runs/trial
    python -m experiments.graph_optimisation --resume

No data is needed. Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.graph_optimisation import GraphOptimisation

main = script(__doc__, "graph_optimisation.py", GraphOptimisation)

if __name__ == "__main__":
    main()
