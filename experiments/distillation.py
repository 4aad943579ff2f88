"""Train small networks with a large one's help, in float32 and at few bits, from several seeds: one table and one figure.

    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3
    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3 --only none hinton_t4
    python -m experiments.distillation --config configs/distillation_mnist.py --max-steps 2 --run-dir runs/trial
    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3 --resume

Each seed has a teacher of its own, trained once; what it answers to every training image is computed once and kept in memory.
Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.distillation import Distillation

main = script(__doc__, "distillation_mnist.py", Distillation)

if __name__ == "__main__":
    main()
